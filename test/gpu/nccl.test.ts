/** That the cases of NCCL which want a GPU are right in themselves: on the doubles of libcuda and libnccl. */
import { expect, test } from "vitest";
import { deviceOf, useDoubles } from "../transport/kit/nccl-doubles.ts";
import { ncclCases } from "./nccl.ts";

useDoubles(1);

for (const { name, run } of ncclCases(deviceOf(0))) {
  test(name, async () => {
    await expect(run()).resolves.toBeUndefined();
  });
}
