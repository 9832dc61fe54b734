/** Whether the tests that need UCX's library can run. */
import { TensorBusError } from "../../../src/errors.ts";
import { queryUcx } from "../../../src/ffi/ucx.ts";

function find(): string | undefined {
  try {
    return queryUcx().version;
  } catch (error) {
    if (!(error instanceof TensorBusError) || error.code !== "TB_LIBRARY") throw error;
    console.warn(`tests of ucx are skipped: ${error.message}`);
    return undefined;
  }
}

export const ucxVersion = find();
