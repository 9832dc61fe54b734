/* Where the header of UCX and our declarations put what is passed in: a name, theirs and ours a line. */
#include <stdio.h>
#include <ucp/api/ucp.h>

#include "carriers/ucx/ucx_api.h"

#define AT(theirs, field, ours, member) printf(#theirs "." #field " %zu %zu\n", offsetof(theirs, field), offsetof(ours, member))
#define IS(theirs, ours) printf(#theirs " %lld %lld\n", (long long)(theirs), (long long)(ours))

int main(void) {
    AT(ucp_params_t, features, tb_ucp_params, features);
    AT(ucp_params_t, mt_workers_shared, tb_ucp_params, mt_workers_shared);
    AT(ucp_params_t, name, tb_ucp_params, name);
    AT(ucp_context_attr_t, memory_types, tb_ucp_context_attr, memory_types);
    AT(ucp_context_attr_t, name, tb_ucp_context_attr, name);
    AT(ucp_worker_params_t, thread_mode, tb_ucp_worker_params, thread_mode);
    AT(ucp_worker_params_t, events, tb_ucp_worker_params, events);
    AT(ucp_worker_params_t, client_id, tb_ucp_worker_params, client_id);
    AT(ucp_ep_params_t, address, tb_ucp_ep_params, address);
    AT(ucp_ep_params_t, err_mode, tb_ucp_ep_params, error_mode);
    AT(ucp_ep_params_t, err_handler, tb_ucp_ep_params, error_handler);
    AT(ucp_ep_params_t, user_data, tb_ucp_ep_params, user_data);
    AT(ucp_ep_params_t, local_sockaddr, tb_ucp_ep_params, local_socket);
    AT(ucp_mem_map_params_t, address, tb_ucp_map_params, address);
    AT(ucp_mem_map_params_t, length, tb_ucp_map_params, length);
    AT(ucp_mem_map_params_t, prot, tb_ucp_map_params, protection);
    AT(ucp_mem_map_params_t, memory_type, tb_ucp_map_params, memory_type);
    AT(ucp_request_param_t, flags, tb_ucp_request_param, flags);
    AT(ucp_request_param_t, cb, tb_ucp_request_param, call);
    AT(ucp_request_param_t, user_data, tb_ucp_request_param, user_data);
    AT(ucp_request_param_t, memory_type, tb_ucp_request_param, memory_type);
    AT(ucp_request_param_t, memh, tb_ucp_request_param, memory);
    IS(UCP_FEATURE_RMA, TB_UCP_FEATURE_RMA);
    IS(UCP_FEATURE_WAKEUP, TB_UCP_FEATURE_WAKEUP);
    IS(UCP_PARAM_FIELD_FEATURES, TB_UCP_PARAM_FEATURES);
    IS(UCP_ATTR_FIELD_MEMORY_TYPES, TB_UCP_CONTEXT_MEMORY_TYPES);
    IS(UCP_WORKER_PARAM_FIELD_THREAD_MODE, TB_UCP_WORKER_THREAD_MODE);
    IS(UCS_THREAD_MODE_SERIALIZED, TB_UCS_THREADS_IN_TURN);
    IS(UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, TB_UCP_EP_ADDRESS);
    IS(UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE, TB_UCP_EP_ERROR_MODE);
    IS(UCP_EP_PARAM_FIELD_ERR_HANDLER, TB_UCP_EP_ERROR_HANDLER);
    IS(UCP_ERR_HANDLING_MODE_PEER, TB_UCP_ERRORS_OF_PEERS);
    IS(UCP_MEM_MAP_PARAM_FIELD_ADDRESS, TB_UCP_MAP_ADDRESS);
    IS(UCP_MEM_MAP_PARAM_FIELD_LENGTH, TB_UCP_MAP_LENGTH);
    IS(UCP_MEM_MAP_PARAM_FIELD_PROT, TB_UCP_MAP_PROTECTION);
    IS(UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE, TB_UCP_MAP_MEMORY_TYPE);
    IS(UCP_MEM_MAP_PROT_LOCAL_READ, TB_UCP_LOCAL_READ);
    IS(UCP_MEM_MAP_PROT_LOCAL_WRITE, TB_UCP_LOCAL_WRITE);
    IS(UCP_MEM_MAP_PROT_REMOTE_READ, TB_UCP_REMOTE_READ);
    IS(UCS_MEMORY_TYPE_HOST, TB_UCS_MEMORY_HOST);
    IS(UCS_MEMORY_TYPE_CUDA, TB_UCS_MEMORY_CUDA);
    IS(UCP_OP_ATTR_FIELD_CALLBACK, TB_UCP_OP_CALLBACK);
    IS(UCP_OP_ATTR_FIELD_USER_DATA, TB_UCP_OP_USER_DATA);
    IS(UCP_OP_ATTR_FIELD_FLAGS, TB_UCP_OP_FLAGS);
    IS(UCP_OP_ATTR_FIELD_MEMORY_TYPE, TB_UCP_OP_MEMORY_TYPE);
    IS(UCP_OP_ATTR_FIELD_MEMH, TB_UCP_OP_MEMORY);
    IS(UCP_EP_CLOSE_FLAG_FORCE, TB_UCP_CLOSE_BY_FORCE);
    IS(UCS_ERR_NO_MEMORY, TB_UCS_NO_MEMORY);
    IS(UCS_ERR_CANCELED, TB_UCS_CANCELED);
    IS(UCS_ERR_LAST, TB_UCS_LAST);
    return 0;
}
