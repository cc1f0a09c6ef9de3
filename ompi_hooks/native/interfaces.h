/* Network interfaces that appeared, or changed, after the process began. */
#ifndef KAWARIMI_NATIVE_INTERFACES_H
#define KAWARIMI_NATIVE_INTERFACES_H

/* Bring opal_if_list up to date with the kernel's IPv4 addresses. It is filled once, in opal_init;
 * btl/tcp and openib's rdmacm connection manager look addresses up there when they are opened, and
 * keep none of its entries. A failure leaves the list as it was. */
void kw_interfaces_refresh(void);

#endif
