/*
 * Which carriers there are, and which of them a pair of ranks gets: a pure function of what both have said. No lock is
 * needed.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "round/carrier.h"
#include "round/select.h"

/* ---- what a carrier has to say of itself --------------------------------------------------------------- */

/* The first operation or fact that it lacks; NULL if it lacks none. */
static const char *unsaid(const tb_carrier *carrier) {
    const struct {
        uint32_t ways;
        bool said;
        const char *what;
    } needs[] = {
        {TB_WAY_STREAM | TB_WAY_PULL | TB_WAY_JOINT, carrier->memory != 0, "memory"},
        {TB_WAY_PULL, carrier->describe != NULL, "describe"},
        {TB_WAY_PULL, carrier->open != NULL, "open"},
        {TB_WAY_PULL, carrier->close != NULL, "close"},
        {TB_WAY_PULL, (carrier->move != NULL) != (carrier->submit != NULL), "either move or submit"},
        {TB_WAY_JOINT, carrier->submit != NULL, "submit"},
        {TB_WAY_JOINT, carrier->plan != NULL, "plan"},
        {TB_WAY_JOINT, carrier->transfer_free != NULL, "transfer_free"},
        {TB_WAY_JOINT, carrier->busy != NULL, "busy"},
        {TB_WAY_JOINT, carrier->round_begin != NULL, "round_begin"},
        {TB_WAY_JOINT, carrier->round_failed != NULL, "round_failed"},
        {TB_WAY_JOINT, carrier->frame != NULL, "frame"},
        {TB_WAY_JOINT, carrier->peer_aborted != NULL, "peer_aborted"},
        {TB_WAY_JOINT, carrier->peer_released != NULL, "peer_released"},
        {TB_WAY_JOINT, carrier->peer_gone != NULL, "peer_gone"},
    };
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++) {
        if ((needs[i].ways & carrier->way) != 0 && !needs[i].said) {
            return needs[i].what;
        }
    }
    return carrier->way == TB_WAY_STREAM || carrier->way == TB_WAY_PULL || carrier->way == TB_WAY_JOINT ? NULL
                                                                                                        : "one way";
}

int32_t tb_carriers_check(const tb_carrier *const *carriers, tb_error *err) {
    uint32_t numbers = 0;
    for (const tb_carrier *const *at = carriers; *at != NULL; at++) {
        const tb_carrier *carrier = *at;
        const char *name = carrier->name == NULL ? "without a name" : carrier->name;
        if (carrier->number >= TB_CARRIER_NUMBERS || (numbers >> carrier->number & 1) != 0) {
            return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                           "the carrier %s has the number %u: give it one below %d that no other carrier has", name,
                           carrier->number, TB_CARRIER_NUMBERS);
        }
        numbers |= 1u << carrier->number;
        const char *what = carrier->name == NULL ? "name" : unsaid(carrier);
        if (what != NULL) {
            return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                           "the carrier %s has to have %s: add it to its table (native/src/round/carrier.h)", name,
                           what);
        }
    }
    return TB_OK;
}

/* ---- the choice ---------------------------------------------------------------------------------------- */

/* A session that names no carrier streams. */
static bool allows(const tb_wire_identity *identity, const tb_carrier *carrier) {
    return identity->carriers == 0 ? carrier->way == TB_WAY_STREAM : (identity->carriers >> carrier->number & 1) != 0;
}

/* memory: of both. */
static const char *unreached(uint32_t memory) {
    bool cuda = (memory & TB_MEMORY_CUDA) != 0;
    bool host = (memory & ~(uint32_t)TB_MEMORY_CUDA) != 0;
    return cuda && host ? "tensors of one lie in CUDA memory and those of the other in memory of the host"
           : cuda       ? "tensors lie in CUDA memory, which it does not reach"
                        : "tensors lie in memory of the host, which it does not reach";
}

/* What keeps the two from using it; NULL if nothing does. words: room for what a carrier says of itself. */
static const char *lacks(const tb_carrier *carrier, const tb_wire_identity *a, const tb_wire_identity *b,
                         uint32_t flags, char *words, size_t size, int32_t *code) {
    if (!allows(a, carrier) || !allows(b, carrier)) {
        return "one of the two does not use it";
    }
    if (((a->memory | b->memory) & ~carrier->memory) != 0) {
        return unreached(a->memory | b->memory);
    }
    if ((flags & TB_TRANSFER_CHECKSUM) != 0 && !carrier->checksums) {
        return "it makes no checksums";
    }
    if (carrier->same_host && memcmp(a->boot, b->boot, sizeof a->boot) != 0) {
        return "the two are on different hosts";
    }
    if (carrier->same_host && a->pid_space != b->pid_space) {
        return "the two are in different PID namespaces";
    }
    if (carrier->same_host && a->user != b->user) {
        return "the two belong to different users";
    }
    return carrier->lacks == NULL ? NULL : carrier->lacks(a, b, words, size, code);
}

int32_t tb_carrier_select(const tb_carrier *const *carriers, const tb_wire_identity *lower,
                          const tb_wire_identity *higher, uint32_t flags, const tb_carrier **chosen, tb_error *err) {
    char why[240] = "";
    char words[80];
    size_t length = 0;
    int32_t code = TB_EUNSUPPORTED;
    for (; *carriers != NULL; carriers++) {
        const char *lack = lacks(*carriers, lower, higher, flags, words, sizeof words, &code);
        if (lack == NULL) {
            *chosen = *carriers;
            return TB_OK;
        }
        /* A carrier that neither of them speaks of is nothing that is missing. */
        if ((allows(lower, *carriers) || allows(higher, *carriers)) && length < sizeof why) {
            int more = snprintf(why + length, sizeof why - length, "%s%s: %s", length == 0 ? "" : "; ",
                                (*carriers)->name, lack);
            length += more > 0 ? (size_t)more : 0;
        }
    }
    return tb_fail(err, code, -1, 0, "no way between the two: %s", why);
}

const tb_carrier *tb_carrier_by_way(const tb_session *session, enum tb_way way) {
    const tb_carrier *const *at = session->carriers;
    while (*at != NULL && (*at)->way != way) {
        at++;
    }
    return *at;
}

bool tb_session_may(const tb_session *session, uint32_t ways, uint32_t memory) {
    bool may = false;
    for (const tb_carrier *const *at = session->carriers; *at != NULL; at++) {
        bool uses = (session->identity.carriers >> (*at)->number & 1) != 0;
        may |= uses && ((*at)->way & ways) != 0 && ((*at)->memory & memory) != 0;
    }
    return may;
}
