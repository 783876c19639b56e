//! Functions that calculate a policy, or how long one needs to detect a dead peer.

#![expect(unsafe_code, reason = "C calls these functions")]

use core::ffi::CStr;

use ka_core::{Config, Detection, Errno, PlanError, Retransmission};
use libc::{c_char, c_int};

use crate::config::{ConfigWords, ka_config, values};
use crate::errno::{EINVAL, answer};

/// Calculate a policy that detects a dead peer within a given time, even if each kernel timer is as late as possible.
/// It uses up to three probes.
///
///   within_ms  milliseconds, 2274 or more.
///   config     receives the policy. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON. user_timeout and
///              rto_max are KA_KEEP. A user timeout would replace cnt, and would end connections to healthy peers
///              that keep their window closed.
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
///   ERANGE       within_ms is below 2274, which is too short for any policy.
/// After a failure *config is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_plan_detect(within_ms: u32, config: *mut ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states.
    unsafe { ka_config::fill(config, || plan(ka_core::plan_detect(within_ms))) }
}

/// Calculate a policy that keeps a connection open on a path whose NAT, firewall or load balancer drops idle
/// connections.
///
/// Two probes are sent before the path's idle timeout, so one may be lost. A timeout of 350 s gives idle 280, intvl 30
/// and cnt 5.
///
///   path_idle_s  seconds, 3 or more: the idle timeout of the path.
///   config       receives the policy. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout
///                and rto_max are KA_KEEP.
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
///   ERANGE       path_idle_s is below 3, which is too short for any policy.
/// After a failure *config is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_plan_path(path_idle_s: u32, config: *mut ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states.
    unsafe { ka_config::fill(config, || plan(ka_core::plan_path(path_idle_s))) }
}

/// Calculate the policy of ka_plan_path for a middlebox whose idle timeout is published.
///
///   name    one of the names below. Each number is the default idle timeout in seconds. The manual page
///           ka_plan_path(3) names its source. If an operator has changed the timeout, use ka_plan_path.
/// PRESETS
///   config  receives the policy. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout and
///           rto_max are KA_KEEP.
///
/// The list has only middleboxes that forward packets, because they count a probe as traffic. A proxy that terminates
/// the TCP connection does not count probes. Examples are AWS's Classic and Application Load Balancers.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL, or the size of config is below 8 or not a multiple of 4.
///   ENOENT       no preset has this name.
/// After a failure *config is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_plan_preset(name: *const c_char, config: *mut ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states. The name is NULL or a C
    // string.
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

/// Calculate how long a policy needs to detect a dead peer, from the last packet of the peer.
///
///   config      the policy. keepalive must be KA_ON, and idle, intvl and cnt must be set. If user_timeout is set, the
///               connection ends at the first probe time that is at or after the user timeout, but not before one
///               interval after the first probe. cnt then has no effect.
///   typical_ms  receives the milliseconds if no timer is late. Without a user timeout this is
///               1000 * (idle + intvl * cnt).
///   worst_ms    receives the milliseconds in the worst case, which has two parts. First, the peer dies right after it
///               has answered a probe. An answer does not shorten the timer that its probe has started
///               (tcp_keepalive_timer), so the next probe comes after the longer of idle and intvl. Second, each timer
///               is as late as the kernel's timer wheel allows: by 8/63 of its time, and a tick of 10 ms.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; ka_apply would reject config with EINVAL; keepalive is not KA_ON; idle, intvl
///                or cnt is KA_KEEP.
///   E2BIG        ka_apply would reject config with E2BIG.
/// After a failure *typical_ms and *worst_ms are unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_detect_time(
    config: *const ka_config,
    typical_ms: *mut u64,
    worst_ms: *mut u64,
) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer, as `time` requires.
    unsafe { time(config, typical_ms, worst_ms, Config::detection) }
}

/// Calculate how long a policy needs to detect a dead peer while sent data is unacknowledged, from the first
/// retransmission of the data.
///
/// The kernel retransmits the data at intervals that double from 200 ms up to rto_max, and ends the connection after
/// the time that net.ipv4.tcp_retries2 retransmissions take (tcp_model_timeout). It sends no keepalive probes
/// meanwhile. keepalive, idle, intvl and cnt have no effect on this time, except through KA_AUTO.
///
///   config      the policy. If rto_max is KA_KEEP, the value of net.ipv4.tcp_rto_max_ms is used. If a sysctl
///               cannot be read, 15 is used for tcp_retries2 and 120000 for tcp_rto_max_ms.
///   typical_ms  receives the milliseconds. With a user_timeout this is the user timeout.
///   worst_ms    receives typical_ms plus one rto_max, because the kernel checks the time only when a retransmission
///               is due.
///
/// Two delays are not included. The first retransmission follows the first transmission after the round-trip time and
/// 200 ms or a little more. The kernel's timers can fire late, so the last retransmission may be late by up to an
/// eighth of rto_max.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; ka_apply would reject config with EINVAL; user_timeout or rto_max is KA_AUTO,
///                and idle, intvl or cnt is KA_KEEP.
///   E2BIG        ka_apply would reject config with E2BIG.
/// After a failure *typical_ms and *worst_ms are unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe. Uses a descriptor (close-on-exec) while it runs.
/// Since 0.2.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_data_time(
    config: *const ka_config,
    typical_ms: *mut u64,
    worst_ms: *mut u64,
) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer, as `time` requires.
    unsafe { time(config, typical_ms, worst_ms, |config| config.data_time(Retransmission::read())) }
}

/// Writes the times that `calculate` returns for a caller's config. Returns the result of the C function.
///
/// # Safety
/// `config` is NULL, or can be read for as many bytes as its size states. The others are NULL, or can be written.
#[inline(never)]
unsafe fn time(
    config: *const ka_config,
    typical_ms: *mut u64,
    worst_ms: *mut u64,
    calculate: fn(&Config) -> Result<Detection, PlanError>,
) -> c_int {
    answer(|| {
        if typical_ms.is_null() || worst_ms.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: the caller passes NULL, or a config with as many bytes as its size states.
        let config = unsafe { ka_config::read(config) }?;
        let detection = calculate(&config)?;
        // SAFETY: neither pointer is NULL, so both can be written. C does not guarantee their alignment.
        unsafe {
            typical_ms.write_unaligned(detection.typical_ms);
            worst_ms.write_unaligned(detection.worst_ms);
        }
        Ok(0)
    })
}

fn plan(plan: Result<Config, PlanError>) -> Result<ConfigWords, Errno> {
    Ok(values(&plan?))
}
