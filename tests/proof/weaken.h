/* SPDX-License-Identifier: Apache-2.0
 *
 * Weakened memory orders of lbd/shm/ring.h for native runs: -DWEAKEN_<ROLE>, included before the header. (The
 * relacy proof has them as arguments.)
 */
#ifdef WEAKEN_PUBLISH
#define LBD_ORDER_PUBLISH LBD_RELAXED
#endif
#ifdef WEAKEN_SEE
#define LBD_ORDER_SEE LBD_RELAXED
#endif
#ifdef WEAKEN_FREE
#define LBD_ORDER_FREE LBD_RELAXED
#endif
#ifdef WEAKEN_SEE_FREE
#define LBD_ORDER_SEE_FREE LBD_RELAXED
#endif
#ifdef WEAKEN_SLEEP_FENCE
#define LBD_FENCE_SLEEP() ((void)0)
#endif
#ifdef WEAKEN_WAKE_FENCE
#define LBD_FENCE_WAKE() ((void)0)
#endif
