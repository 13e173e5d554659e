/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The shim that lets bcc compile without the running kernel's headers.
 *
 * bcc includes this file first, then expects kernel-internal headers. A datapath that reads packets and struct
 * __sk_buff needs only the UAPI headers (Debian: linux-libc-dev), whose version does not matter. BCC_KERNEL_SOURCE
 * points here; the files beside this one are empty on purpose.
 */
#ifndef PYDATAPATH_KCONFIG_H
#define PYDATAPATH_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096
#define IFNAMSIZ 16

/* bcc brings its own bpf.h, and net/if.h is not ours to include */
#define __LINUX_BPF_H__
#define _LINUX_IF_H

#include <asm/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;

#ifndef NULL
#define NULL ((void *)0)
#endif
#define true 1
#define false 0

#endif
