/**
 * Sessions in which some pairs of ranks take cuda-ipc and some nccl, on the doubles of libcuda and libnccl (native/test/doubles):
 * every third rank offers NCCL alone, as one on another host would. All else is the compliance of every transport.
 */
import { select } from "../../src/transport/selection.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { nccl } from "../../transports/nccl/index.ts";
import { testTransport } from "./compliance/suite.ts";
import { deviceOf, subjectOf, useDoubles } from "./kit/nccl-doubles.ts";

useDoubles(16);

const transportOf = (rank: number) => {
  const device = deviceOf(rank);
  return select(rank % 3 === 2 ? [nccl({ device })] : [cudaIpc({ device }), nccl({ device })]);
};

testTransport(subjectOf("cuda-ipc and nccl (doubles)", transportOf));
