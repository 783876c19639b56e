//! Policies worked out, and what a policy achieves.

#![expect(unsafe_code, reason = "it is what C calls")]

use core::ffi::CStr;

use ka_core::{Config, Errno, PlanError};
use libc::{c_char, c_int};

use crate::config::{Values, ka_config, values};
use crate::errno::{EINVAL, answer};

/// Works out a policy that knows of a dead peer within so many milliseconds, however late the kernel's timers
/// are, after up to three probes.
///
///   within_ms  ms, 2274 or more.
///   config     where to put it; its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout KA_KEEP:
///              it would take the place of cnt, and end connections to healthy peers that keep their window closed.
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is not a multiple of 4 from 8 up.
///   ERANGE       no policy can do it in so short a time.
/// After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_plan_detect(within_ms: u32, config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { ka_config::fill(config, || plan(ka_core::plan_detect(within_ms))) }
}

/// Works out a policy that keeps a connection alive on a path where a NAT, a firewall or a load balancer forgets it
/// after so many idle seconds: it has sent two probes by then, so that one may be lost. 350 gives 280, 30, 5.
///
///   path_idle_s  s, 3 or more: the idle timeout of the path.
///   config       where to put it; its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout
///                KA_KEEP.
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is not a multiple of 4 from 8 up.
///   ERANGE       no policy can do it in so short a time.
/// After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_plan_path(path_idle_s: u32, config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { ka_config::fill(config, || plan(ka_core::plan_path(path_idle_s))) }
}

/// Works out the policy of ka_plan_path for a middlebox whose idle timeout is public.
///
///   name    one of these. The number is the default idle timeout in seconds; ka_plan_path(3) names its source. If an
///           operator has changed it, use ka_plan_path.
/// PRESETS
///   config  where to put it; its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout KA_KEEP.
///
/// Only what looks at packets is here: a probe counts as traffic there. A proxy that ends the TCP connection
/// itself, as AWS's Classic and Application Load Balancers do, does not count probes.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL, or config's size is not a multiple of 4 from 8 up.
///   ENOENT       there is no preset of this name.
/// After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_plan_preset(name: *const c_char, config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the config, and the name, where it is not NULL, is a C string.
    unsafe {
        ka_config::fill(config, || {
            if name.is_null() {
                return Err(EINVAL);
            }
            let preset = ka_core::preset(CStr::from_ptr(name).to_bytes()).ok_or(Errno(libc::ENOENT))?;
            plan(preset.plan())
        })
    }
}

/// Computes how long a policy needs to find a dead peer.
///
///   config      keepalive is KA_ON, and idle, intvl and cnt are named. If there is a user_timeout, the connection
///               ends at the first probe that is due when the timeout is over, but not before one interval after
///               the first probe. cnt then has no effect.
///   typical_ms  receives the milliseconds from the last packet of the peer, if no timer is late: 1000 * (idle +
///               intvl * cnt).
///   worst_ms    receives the milliseconds in the worst case. The peer dies right after it has answered a probe,
///               and the next probe comes after intvl, if that is longer than idle: an answer does not shorten the
///               timer that its probe has started (tcp_keepalive_timer). Each timer is late by an eighth and a
///               tick, as the kernel's timer wheel allows.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; ka_apply would refuse the config with EINVAL; keepalive is not KA_ON; idle,
///                intvl or cnt is KA_KEEP.
///   E2BIG        ka_apply would refuse the config with E2BIG.
/// After a failure *typical_ms and *worst_ms are as they were.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_detect_time(
    config: *const ka_config,
    typical_ms: *mut u64,
    worst_ms: *mut u64,
) -> c_int {
    answer(|| {
        if typical_ms.is_null() || worst_ms.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: C vouches for the pointer.
        let config = unsafe { ka_config::read(config) }?;
        let detection = config.detection().map_err(|error| error.errno())?;
        // SAFETY: C vouches for the pointers, and may have put them anywhere.
        unsafe {
            typical_ms.write_unaligned(detection.typical_ms);
            worst_ms.write_unaligned(detection.worst_ms);
        }
        Ok(0)
    })
}

fn plan(plan: Result<Config, PlanError>) -> Result<Values, Errno> {
    plan.map(|config| values(&config)).map_err(|error| error.errno())
}
