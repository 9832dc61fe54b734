export { type EtcdStoreOptions, etcdStore } from "./etcd-store.ts";
export { type MemoryStoreOptions, memoryStores } from "./memory-store.ts";
export { type OpenedStore, type OpenStoreOptions, openStore } from "./open-store.ts";
export { type IgnoredRecord, type SignedStoreOptions, signedStore } from "./signed.ts";
export type { SetOptions, Store, StoreCallOptions, StoreCapabilities } from "./store.ts";
export {
  serveTcpStore,
  type TcpStoreServer,
  type TcpStoreServerOptions,
  type TcpStoreServerStats,
} from "./tcp-server.ts";
export { type TcpStoreOptions, tcpStore } from "./tcp-store.ts";
