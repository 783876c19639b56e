//! Short forms of policies and settings, for messages.

use std::fmt::Write as _;

use ka_core::{Config, Retransmission, Settings, Text, Timer};

/// Formats a policy as users write it: as `60,10,6` if it turns keepalive on, and has these three values and no others.
pub fn brief(config: &Config) -> String {
    let has_others = [Timer::UserTimeout, Timer::RtoMax].into_iter().any(|timer| config.names(timer));
    match (config.enabled(), config.idle(), config.intvl(), config.cnt()) {
        (Some(true), Some(idle), Some(intvl), Some(cnt)) if !has_others => format!("{idle},{intvl},{cnt}"),
        _ => Text::typed(config).to_string(),
    }
}

/// Formats a socket's settings: `off` or `60,10,6`, and the user timeout and the longest time between two
/// retransmissions if the socket has one that is not the kernel's default.
pub fn brief_settings(settings: &Settings) -> String {
    let Settings { enabled, idle, intvl, cnt, user_timeout, rto_max } = settings;
    let mut others = String::new();
    if let Some(timeout) = user_timeout.filter(|timeout| *timeout > 0) {
        let _ = write!(others, ",user_timeout={timeout}ms");
    }
    if let Some(rto_max) = rto_max.filter(|time| *time != Retransmission::STANDARD.rto_max_ms) {
        let _ = write!(others, ",rto_max={rto_max}ms");
    }
    match (enabled, others.is_empty()) {
        (true, true) => format!("{idle},{intvl},{cnt}"),
        (true, false) => format!("idle={idle},intvl={intvl},cnt={cnt}{others}"),
        (false, _) => format!("off{others}"),
    }
}
