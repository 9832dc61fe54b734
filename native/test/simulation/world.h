#ifndef TB_SIM_WORLD_H
#define TB_SIM_WORLD_H

#define SIM_TIMEOUT 20000000000ull

/* Opens the sessions of a schedule, and begins their prepares. */
void sim_open(void);
/* The process of a rank is gone, with all that it had. */
void sim_kill(int rank);
void sim_close(void);

#endif
