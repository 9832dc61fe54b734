/* Our declarations beside those of NCCL's own header: sizes, offsets and numbers, one a line. */
#include <stddef.h>
#include <stdio.h>

#include <nccl.h>

#include "carriers/nccl/nccl_api.h"

#define OFFSET(theirs, ours)                                                                                           \
    printf("ncclConfig_t.%s %zu %zu\n", #theirs, offsetof(ncclConfig_t, theirs), offsetof(tb_nccl_config, ours))
#define NUMBER(theirs, ours) printf("%s %d %d\n", #theirs, (int)(theirs), (int)(ours))

int main(void) {
    printf("ncclUniqueId %zu %zu\n", sizeof(ncclUniqueId), sizeof(tb_nccl_id));
    OFFSET(size, size);
    OFFSET(magic, magic);
    OFFSET(version, version);
    OFFSET(blocking, blocking);
    OFFSET(cgaClusterSize, cga_cluster_size);
    OFFSET(minCTAs, min_ctas);
    OFFSET(maxCTAs, max_ctas);
    OFFSET(netName, net_name);
    OFFSET(splitShare, split_share);
    OFFSET(trafficClass, traffic_class);
    OFFSET(commName, comm_name);
    OFFSET(collnetEnable, collnet_enable);
    OFFSET(CTAPolicy, cta_policy);
    OFFSET(shrinkShare, shrink_share);
    OFFSET(nvlsCTAs, nvls_ctas);
    OFFSET(nChannelsPerNetPeer, channels_per_net_peer);
    OFFSET(nvlinkCentricSched, nvlink_centric_sched);
    NUMBER(ncclSuccess, TB_NCCL_SUCCESS);
    NUMBER(ncclUnhandledCudaError, TB_NCCL_CUDA_ERROR);
    NUMBER(ncclSystemError, TB_NCCL_SYSTEM_ERROR);
    NUMBER(ncclInternalError, TB_NCCL_INTERNAL_ERROR);
    NUMBER(ncclInvalidArgument, TB_NCCL_INVALID_ARGUMENT);
    NUMBER(ncclInvalidUsage, TB_NCCL_INVALID_USAGE);
    NUMBER(ncclRemoteError, TB_NCCL_REMOTE_ERROR);
    NUMBER(ncclInProgress, TB_NCCL_IN_PROGRESS);
    NUMBER(ncclUint8, TB_NCCL_UINT8);
    tb_nccl_config ours;
    ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
    tb_nccl_config_init(&ours);
    NUMBER(theirs.magic, ours.magic);
    NUMBER(theirs.cgaClusterSize, ours.cga_cluster_size);
    NUMBER(theirs.nvlinkCentricSched, ours.nvlink_centric_sched);
    return 0;
}
