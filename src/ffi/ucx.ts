/** UCX: what can be asked of its library, and the session that is to use it. "UCX" of `native/include/tensorbus.h`. */
import { readdirSync } from "node:fs";
import { declareNative } from "./native.ts";

const native = declareNative({
  tb_ucx_query: ["string", "string", "out u32", "out u32"],
  tb_session_use_ucx: ["u64", "string", "string"],
});

/** Names the library; otherwise the linker looks for it by its soname. */
export const ucxVariable = "TENSOR_BUS_LIBUCP";
/** The bits of `tb_ucx_speaks`. */
const speaks = { rdma: 2, cuda: 4 } as const;

export interface UcxOptions {
  /** The file of `libucp`; default: `TENSOR_BUS_LIBUCP`, else `libucp.so.0`. */
  readonly library?: string | undefined;
  /** UCX's own transports, as in `UCX_TLS`; default: what that says, else all but TCP. */
  readonly transports?: string | undefined;
}

/** True if the kernel has a device that UCX could read other hosts' memory by; asks nothing of the library. */
export function hasRdmaDevice(): boolean {
  try {
    return readdirSync("/sys/class/infiniband").length > 0;
  } catch {
    return false;
  }
}

/** What the library can do here. `TB_LIBRARY` if it is missing or too old, `TB_UNSUPPORTED` if it has no device. */
export function queryUcx({ library = "", transports = "" }: UcxOptions = {}): {
  readonly version: string;
  /** It has devices that read memory of other hosts. */
  readonly rdma: boolean;
  /** It moves CUDA memory: it was built for it, and is 1.16 or newer. */
  readonly cuda: boolean;
} {
  const [version, bits] = native.tb_ucx_query(library, transports);
  return {
    version: `${Math.floor(version / 10_000)}.${Math.floor(version / 100) % 100}.${version % 100}`,
    rdma: (bits & speaks.rdma) !== 0,
    cuda: (bits & speaks.cuda) !== 0,
  };
}

/** What a session with the carrier `ucx` needs before memory is registered. */
export function useUcx(session: bigint, { library = "", transports = "" }: UcxOptions): void {
  native.tb_session_use_ucx(session, library, transports);
}
