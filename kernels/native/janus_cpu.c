/* The CPU kernels as one shared library; janus_isa names the instruction set they were built for. */
#include "attention.h"
#include "balance.h"
#include "experts.h"
#include "linear.h"
#include "route.h"
#include "rows.h"

const char *janus_isa(void) { return ISA_NAME; }
