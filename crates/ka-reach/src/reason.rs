//! Reasons of system errors, for messages.

use std::io;

/// Returns the reason of an error as in strerror(3), without the number that Rust adds: "No such file or directory".
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|number| format!(" (os error {number})"));
    match number.and_then(|number| text.strip_suffix(&number)) {
        Some(reason) => reason.to_owned(),
        None => text,
    }
}

/// Returns the reason of an error of ka-core. ka-core has only the errno, so this adds the text of strerror(3).
pub fn socket_reason(error: &ka_core::Error) -> String {
    let reason = |number| reason(&io::Error::from_raw_os_error(number));
    match error {
        ka_core::Error::NoSocket(errno) => format!("cannot create a TCP socket: {}", reason(errno.0)),
        ka_core::Error::System { option, errno } => format!("{option}: {}", reason(errno.0)),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{reason, socket_reason};

    #[test]
    fn reasons_do_not_contain_the_errno() {
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOENT)), "No such file or directory");
        assert_eq!(reason(&io::Error::other("it has ended")), "it has ended");
        assert_eq!(reason(&io::ErrorKind::IsADirectory.into()), "is a directory");
        let refused = ka_core::Error::System {
            option: ka_core::SockOpt::KeepAlive,
            errno: ka_core::Errno(libc::EPERM),
        };
        assert_eq!(socket_reason(&refused), "SO_KEEPALIVE: Operation not permitted");
    }
}
