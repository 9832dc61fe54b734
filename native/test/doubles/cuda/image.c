/* Prints what the double loads as a module if there is no nvcc to make a real one: the names of the
 * kernels. */
#include <stdio.h>

#include "../../../cuda/table.h"

int main(void) {
    static const char *const names[] = {TB_CUDA_KERNEL_NAMES};
    puts("// for the double of libcuda alone: entries without instructions\n.version 6.3\n.target sm_75");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        printf(".visible .entry %s(.param .align 8 .b8 %s_param_0[%zu])\n", names[i], names[i],
               sizeof(tb_cuda_launch));
    }
    return 0;
}
