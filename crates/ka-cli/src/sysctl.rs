//! The three sysctls of keepalive: the default idle, intvl and cnt of sockets. tcp(7)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ka_core::Defaults;
use ka_reach::reason::{reason, socket_reason};
use ka_reach::user;

use crate::failure::Failure;

/// The names of the sysctls under net.ipv4, in the order of idle, intvl and cnt.
pub(crate) const NAMES: [&str; 3] = ["tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes"];
const FOLDER: &str = "/proc/sys/net/ipv4";

/// Returns the lines of sysctl.d(5) that set these values.
pub(crate) fn lines(values: [i32; 3]) -> String {
    let lines = NAMES.iter().zip(values).map(|(name, value)| format!("net.ipv4.{name} = {value}\n"));
    lines.collect::<Vec<_>>().concat()
}

/// Returns whether this kernel has `TCP_RTO_MAX_MS`: Linux 6.15 and later. `None` if it is unknown.
pub(crate) fn has_rto_max() -> Option<bool> {
    ka_core::defaults().ok().map(|defaults| defaults.rto_max.is_some())
}

/// Reads the values that are in force in this network namespace.
pub(crate) fn read() -> Result<[i32; 3], Failure> {
    let Defaults { idle, intvl, cnt, .. } = ka_core::defaults()
        .map_err(|error| Failure::new(format_args!("defaults: {}", socket_reason(&error))))?;
    Ok([idle, intvl, cnt])
}

/// New values for the sysctls. The files are open and the texts are formatted, so only write(2) can still fail.
pub(crate) struct SysctlWrites {
    files: Vec<(PathBuf, File)>,
    texts: [String; 3],
    before: [String; 3],
}

impl SysctlWrites {
    /// Prepares to set these values. Sets nothing.
    pub(crate) fn prepare(before: [i32; 3], values: [i32; 3]) -> Result<Self, Failure> {
        let mut files = Vec::new();
        for name in NAMES {
            let path = Path::new(FOLDER).join(name);
            let file = OpenOptions::new().write(true).open(&path).map_err(|error| refused(&path, &error))?;
            files.push((path, file));
        }
        let text = |value| format!("{value}\n");
        Ok(Self { files, texts: values.map(text), before: before.map(text) })
    }

    /// Sets all three values. If the kernel rejects one, restores the others.
    pub(crate) fn apply(&self) -> Result<(), Failure> {
        for (done, ((path, file), text)) in self.files.iter().zip(&self.texts).enumerate() {
            if let Err(error) = write(file, text) {
                self.restore(done);
                return Err(refused(path, &error));
            }
        }
        Ok(())
    }

    /// Restores all three values.
    pub(crate) fn undo(&self) {
        self.restore(self.files.len());
    }

    fn restore(&self, count: usize) {
        for ((_, file), text) in self.files.iter().zip(&self.before).take(count) {
            // The kernel has accepted these values before, so an error is unlikely.
            let _ = write(file, text);
        }
    }
}

/// Writes a value with one write at the start of the file. The kernel ignores a write at another position
/// (kernel.sysctl_writes_strict).
fn write(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            // Root may lack the capability too, for example in a container.
            let instead = if user::users().1 == 0 { "" } else { " (try sudo)" };
            format!("needs CAP_NET_ADMIN in this network namespace{instead}; nothing was set")
        }
        Some(libc::EROFS) => {
            "/proc/sys is mounted read-only here, as in most containers; nothing was set. Set it \
                              on the host, or with --sysctl of the container's runtime"
                .to_owned()
        }
        _ => format!("{}; nothing was set", reason(error)),
    };
    Failure::new(format_args!("defaults: {}: {why}", path.display()))
}
