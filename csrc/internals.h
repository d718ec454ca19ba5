/* SPDX-License-Identifier: MIT */
/*
 * internals.h - shared by the .c files of the core, and by nobody else.
 */
#ifndef VMBUSIRQ_INTERNALS_H
#define VMBUSIRQ_INTERNALS_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VI_MUST_CHECK __attribute__((warn_unused_result))
#include "vmbusirq_api.h"

#define VI_LINE 64
#define VI_ALIGNED __attribute__((aligned(VI_LINE)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Our own mistakes, never a user's: on in every build. */
#define VI_BUG_ON(cond) do { if (unlikely(cond)) __builtin_trap(); } while (0)

#endif
