/* Open MPI's configuration as Debian built it (libopenmpi-dev installs it), with the one difference
 * that the testbed needs: openib's rdmacm connection manager. Debian's component has udcm only, and
 * udcm refuses Ethernet link layers, so it finds no way to connect over (soft) RoCE. */
#include_next <opal_config.h>
#undef OPAL_HAVE_RDMACM
#define OPAL_HAVE_RDMACM 1
#undef BTL_OPENIB_RDMACM_IB_ADDR
#define BTL_OPENIB_RDMACM_IB_ADDR 0
