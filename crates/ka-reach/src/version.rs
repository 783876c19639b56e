//! The version of ka. `ka` starts ka-top and ka-metrics, which read its arguments and its messages. So all three must
//! have the same version.

use std::ffi::OsStr;

use crate::escape::visible;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Checks the first argument of a program that `ka` starts for a command. It is the version of `ka`.
///
/// # Errors
///
/// `ka` has not started this program, or has another version. The text tells the user what to do.
pub fn check(argument: Option<&OsStr>, program: &str, command: &str) -> Result<(), String> {
    let argument = argument.unwrap_or_default().as_encoded_bytes();
    let is_version = argument.first().is_some_and(u8::is_ascii_digit) && argument.contains(&b'.');
    if argument == VERSION.as_bytes() {
        Ok(())
    } else if is_version {
        let other = visible(argument);
        Err(format!(
            "ka is version {other}, but {program} is version {VERSION}: install both from the same release of ka"
        ))
    } else {
        Err(format!("this program is a part of ka: use {command}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_version_is_accepted() {
        let check = |argument: &str| check(Some(argument.as_ref()), "ka-top", "ka top");
        assert_eq!(check(VERSION), Ok(()));
        for argument in ["9.9.9", "0.1.0-rc.1"] {
            let error = check(argument).unwrap_err();
            let text = format!("ka is version {argument}, but ka-top is version {VERSION}: install both");
            assert!(error.starts_with(&text), "{error}");
        }
        for argument in ["", "1234", "--port", "--interval=1.5s"] {
            assert_eq!(check(argument).unwrap_err(), "this program is a part of ka: use ka top");
        }
        assert!(super::check(None, "ka-top", "ka top").is_err());
    }
}
