/* What connections ask and tell the rounds of a session. */
#ifndef TB_PEERS_H
#define TB_PEERS_H

#include "wire/net.h"

extern const tb_peer_handler tb_round_peers;

#endif
