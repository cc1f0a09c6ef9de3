/* Verbs contexts and connection manager ids that nobody closes, and that would hold the device.
 *
 * openib's rdmacm connection manager (opal/mca/btl/openib/connect/btl_openib_connect_rdmacm.c at
 * v4.1.4) never destroys the ids that it accepted or rejected, and librdmacm keeps a verbs context
 * of its own past its unloading. The shim's DSO is loaded before openib's, with RTLD_GLOBAL, so the
 * definitions in verbs_reap.c stand in front of those of libibverbs and librdmacm. */
#ifndef KAWARIMI_NATIVE_VERBS_REAP_H
#define KAWARIMI_NATIVE_VERBS_REAP_H

/* Set the local acknowledge time-out of every connection made through librdmacm from now on, as the
 * exponent of 4.096 us * 2^n; 0 leaves librdmacm's choice. btl_openib_ib_timeout has no effect
 * there, and the default costs seconds for each lost packet. */
void kw_verbs_set_ack_timeout(int exponent);

/* Close the verbs contexts whose opener is no longer loaded. To be called after a component was
 * closed or failed to initialise. */
void kw_verbs_reap(void);

#endif
