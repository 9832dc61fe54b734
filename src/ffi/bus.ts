/** `native/include/tensorbus_bus.h`: semaphores, waits, kernel-freed locks, the gate, the heartbeat. */
import { declareNative } from "./native.ts";

export const nativeBus = declareNative({
  tb_port_open: ["out u64", "out i32"],
  tb_port_next: ["u64", "out u64", "out u32"],
  tb_port_close: ["u64"],

  tb_semaphore_create: ["string", "out u64"],
  tb_semaphore_open: ["string", "out u64"],
  tb_semaphore_post: ["u64"],
  tb_semaphore_try: ["u64", "out u32"],
  tb_semaphore_wait: ["u64", "u64"],
  tb_semaphore_close: ["u64"],
  tb_semaphore_unlink: ["string", "out u32"],

  tb_waiter_start: ["u64", "u64", "u64", "u64", "out u64"],
  tb_waiter_stop: ["u64"],

  tb_lock_open: ["string", "out u64"],
  tb_lock_try: ["u64", "u64", "out u32"],
  tb_lock_share: ["u64", "u64", "out u32"],
  tb_lock_release: ["u64", "u64"],
  tb_lock_held: ["u64", "u64", "out u32"],
  tb_lock_close: ["u64"],

  tb_watch_start: ["u64", "string", "u64", "u64", "out u64"],
  tb_watch_stop: ["u64"],

  tb_gate_open: ["u64", "string", "u64", "out u64"],
  tb_gate_attach: ["u64", "string", "string", "out u32"],
  tb_gate_prepare: ["u64", "string", "string", "u64", "out u32"],
  tb_gate_guard: ["u64", "string", "string", "out u64", "out u64", "out u32"],
  tb_gate_check: ["u64"],
  tb_gate_reserve: ["u64", "u32", "u32", "u32", "u32"],
  tb_gate_verify: ["u64", "out u32"],
  tb_gate_enter: ["u64", "u64", "out u32", "out i32"],
  tb_gate_leave: ["u64"],
  tb_gate_await: ["u64"],
  tb_gate_close: ["u64"],

  tb_heartbeat_start: ["string", "u32", "out u64"],
  tb_heartbeat_stop: ["u64"],
  tb_heartbeat_unlink: ["string", "out u32"],
  tb_pulse_open: ["string", "out u64"],
  tb_pulse_age: ["u64", "out u64"],
  tb_pulse_close: ["u64"],

  tb_peer_uid: ["i32", "out u32"],
  tb_handover_open: ["string", "u32", "out u64"],
  tb_handover_close: ["u64"],
  tb_handover_expect: ["u64", "pointer", "u32"],
  tb_handover_forget: ["u64", "pointer"],
  tb_handover_take: ["u64", "pointer", "u64", "pointer", "u32", "out u32"],
  tb_handover_lend: ["u64", "pointer", "string"],
});
