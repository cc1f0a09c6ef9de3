/* A defect of btl/openib that closing it under a running job would run into. */
#ifndef KAWARIMI_NATIVE_OPENIB_H
#define KAWARIMI_NATIVE_OPENIB_H

/* If btl/openib is loaded: make its device objects begin as zeros. Its device class never sets
 * `allowed_btls` (opal/mca/btl/openib/btl_openib_component.c at v4.1.4: device_construct), so on a
 * dirty heap a device counts users that do not exist and is never released. To be called after the
 * DSO was loaded and before its btl_init; each loading anew. */
void kw_openib_fix_device(void);

#endif
