//! Short forms of policies and settings, for messages.

use ka_core::{Config, Settings, UserTimeout};

/// Formats a policy as users write it: as `60,10,6` if it turns keepalive on, and has these three values and no others.
pub fn brief(config: &Config) -> String {
    match (config.enabled(), config.idle(), config.intvl(), config.cnt(), config.user_timeout()) {
        (Some(true), Some(idle), Some(intvl), Some(cnt), UserTimeout::Keep) => {
            format!("{idle},{intvl},{cnt}")
        }
        _ => ka_core::Text::typed(config).to_string(),
    }
}

/// Formats a socket's settings: `off` or `60,10,6`, and the user timeout if the socket has one.
pub fn brief_settings(settings: &Settings) -> String {
    let Settings { enabled, idle, intvl, cnt, user_timeout } = settings;
    match (enabled, user_timeout.filter(|timeout| *timeout > 0)) {
        (true, None) => format!("{idle},{intvl},{cnt}"),
        (false, None) => "off".to_owned(),
        (true, Some(timeout)) => format!("idle={idle},intvl={intvl},cnt={cnt},user_timeout={timeout}ms"),
        (false, Some(timeout)) => format!("off,user_timeout={timeout}ms"),
    }
}
