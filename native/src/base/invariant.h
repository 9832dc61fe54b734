/* What must be true whatever peers say and whatever fails: checked in every build. */
#ifndef TB_INVARIANT_H
#define TB_INVARIANT_H

/*
 * Ends the process with a line that says what does not hold, and where. It is for faults of this library alone: what a
 * caller, a peer or a machine can get wrong is an error. If one of these does not hold, memory could be written that
 * somebody else uses by now, and tensors that are silently wrong cost more than a process.
 */
#define TB_INVARIANT(condition)                                                                                        \
    do {                                                                                                               \
        if (__builtin_expect(!(condition), 0)) {                                                                       \
            tb_invariant_broken(__FILE__, __LINE__, #condition);                                                       \
        }                                                                                                              \
    } while (0)

_Noreturn void tb_invariant_broken(const char *file, int line, const char *condition) __attribute__((cold));

#endif
