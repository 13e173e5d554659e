/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * How SCTP's checksum changes with its ports (RFC 9260 appendix A). Pure: no map, no helper.
 *
 * A CRC is linear: what changes in the packet changes it by the CRC of that change, followed by as many zeros as the rest
 * of the packet has bytes. Its first 32 bits are the ports, so it is the change times x^(8 * length), modulo the
 * polynomial. Numbers are reflected: bit 31 stands for 1, bit 30 for x.
 */
#ifndef PYDATAPATH_CRC32C_H
#define PYDATAPATH_CRC32C_H

#define CRC32C_POLYNOMIAL 0x82f63b78
#define CRC32C_X8 0x00800000

/* `number` where the bit is set, else 0. LLVM must not see that it is a bit: a branch is two ways for the verifier. */
static inline __u32 crc32c_where(__u32 bit, __u32 number)
{
	asm volatile("" : "+r"(bit));
	return number * bit;
}

static inline __u32 crc32c_multiply(__u32 one, __u32 other)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= crc32c_where(one >> 31, other);
		one <<= 1;
		other = other >> 1 ^ crc32c_where(other & 1, CRC32C_POLYNOMIAL);
	}
	return product;
}

/* What is exclusive-ored to the checksum. `change`: of the first 32 bits, `length`: bytes of the SCTP packet. */
static inline __le32 crc32c_change(__u32 change, __u32 length)
{
	__u32 power = CRC32C_X8, more;

	for (int i = 0; i < 16; i++) {
		more = crc32c_multiply(change, power) ^ change;
		change ^= crc32c_where(length >> i & 1, more);
		power = crc32c_multiply(power, power);
	}
	return change;
}

#endif
