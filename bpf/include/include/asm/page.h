/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* empty on purpose: see linux/kconfig.h */
