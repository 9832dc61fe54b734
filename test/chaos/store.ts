/** The store of a chaos cluster, in a process of its own, which is killed and comes back empty. */
import { serveTcpStore } from "../../src/store/index.ts";

await serveTcpStore({ port: Number(process.argv[2]) });
process.send!({ ready: true });
process.on("disconnect", () => process.exit());
