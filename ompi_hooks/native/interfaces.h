/* Network interfaces that appeared, or changed, after the process began. */
#ifndef KAWARIMI_NATIVE_INTERFACES_H
#define KAWARIMI_NATIVE_INTERFACES_H

/* Bring opal_if_list up to date with the kernel. It is filled once, in opal_init; btl/tcp and
 * openib's rdmacm connection manager look addresses up there. Entries are added and corrected, never
 * removed: others may hold them. A failure leaves the list as it is, and opening the fabric then
 * finds no device. */
void kw_interfaces_merge(void);

#endif
