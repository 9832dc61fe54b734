import { declareNative } from "./native.ts";

/** "kernels" and "memory" of `native/include/tensorbus.h`. */
export const nativeKernels = declareNative({
  tb_build_info: { returns: "string", parameters: [] },
  tb_move: ["pointer", "pointer"],
  tb_reduce: ["pointer", "pointer", "u64", "u32", "u32", "u32"],
  tb_reduce_finish: ["pointer", "pointer", "u64", "u32", "u64"],
  tb_crc32c: { returns: "u32", parameters: ["u32", "pointer", "u64"] },
  tb_host_allocate: ["u64", "out u64"],
  tb_host_free: ["u64", "u64"],
  tb_shared_create: ["string", "u64", "out i32", "out u64"],
  tb_shared_map: ["i32", "u64", "out u64"],
  tb_shared_unmap: ["u64", "u64"],
});
