/** The nccl transport on the doubles of libcuda and libnccl (native/test/doubles): one rank a device of the double. */
import { nccl } from "../../transports/nccl/index.ts";
import { testTransport } from "./compliance/suite.ts";
import { deviceOf, subjectOf, useDoubles } from "./kit/nccl-doubles.ts";

useDoubles(16);

const transportOf = (rank: number) => nccl({ device: deviceOf(rank) });

testTransport(subjectOf("nccl (doubles)", transportOf));
