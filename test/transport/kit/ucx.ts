/** Whether the tests that need UCX's library can run. */
import { TensorBusError } from "../../../src/errors.ts";
import { queryUcx } from "../../../src/ffi/ucx.ts";

// Other tests make links of the host and remove them again, which UCX would count on otherwise.
process.env["UCX_NET_DEVICES"] ??= "lo";

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
