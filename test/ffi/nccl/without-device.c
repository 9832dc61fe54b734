/*
 * Calls the real NCCL where there is no device, through the same table and configuration as the library: what must fail
 * fails with words, and nothing crashes. One line a call: its name, the result, and NCCL's last error; before them its words for each result.
 */
#include <stdio.h>
#include <string.h>

#include "carriers/nccl/nccl_api.h"

static void say(const tb_nccl_api *api, const char *call, tb_nccl_result result) {
    const char *last = api->ncclGetLastError(NULL);
    printf("%s %d %s\n", call, result, last == NULL ? "" : last);
}

int main(int count, char **arguments) {
    const tb_nccl_api *api;
    tb_error err;
    if (tb_nccl_load(count > 1 ? arguments[1] : NULL, &api, &err) != TB_OK) {
        printf("load %d %s\n", err.code, err.message);
        return 0;
    }
    printf("version %d\n", api->version);
    for (int result = TB_NCCL_SUCCESS; result <= TB_NCCL_IN_PROGRESS; result++) {
        printf("words.%d %s\n", result, api->ncclGetErrorString(result));
    }
    printf("words.9999 %s\n", api->ncclGetErrorString(9999));
    tb_nccl_id id;
    say(api, "ncclGetUniqueId", api->ncclGetUniqueId(&id));
    say(api, "ncclGroupEnd", api->ncclGroupEnd());
    tb_nccl_config config;
    tb_nccl_config_init(&config);
    tb_nccl_comm comm = NULL;
    say(api, "ncclCommInitRankConfig", api->ncclCommInitRankConfig(&comm, 1, id, 0, &config));
    printf("comm %s\n", comm == NULL ? "none" : "some");
    /* A first call that finds no device leaves its group open (2.30.7), and whoever made it has to close it. */
    api->ncclGroupEnd();
    say(api, "ncclGroupEnd.closed", api->ncclGroupEnd());
    say(api, "ncclGroupStart", api->ncclGroupStart());
    say(api, "ncclSend", api->ncclSend(&id, 1, TB_NCCL_UINT8, 0, NULL, NULL));
    say(api, "ncclGroupEnd.send", api->ncclGroupEnd());
    tb_nccl_result state;
    say(api, "ncclCommGetAsyncError", api->ncclCommGetAsyncError(NULL, &state));
    say(api, "ncclCommAbort", api->ncclCommAbort(NULL));
    return 0;
}
