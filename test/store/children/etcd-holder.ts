/** A process that holds leased keys until it is killed; bundled and started by the tests. */
import { etcdStore } from "../../../src/store/etcd-store.ts";

const [endpoint = "", leaseSeconds = ""] = process.argv.slice(2);
const store = await etcdStore({ endpoints: [endpoint], leaseSeconds: Number(leaseSeconds) });
await store.set("held", Buffer.from("1"), { leased: true });
await store.set("kept", Buffer.from("1"));
console.log("holding");
setInterval(() => {}, 1000);
