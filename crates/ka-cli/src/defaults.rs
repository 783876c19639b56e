//! `ka defaults`: shows and sets the three sysctls of keepalive.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ka_core::{Config, Retransmission, Timer};
use serde::Serialize;

use crate::args;
use crate::duration::words;
use crate::failure::{CommandResult, Failure};
use crate::json;
use crate::plural::count;
use crate::shell::quoted;
use crate::sysctl;
use ka_reach::diag::State;
use ka_reach::escape::visible;
use ka_reach::file;
use ka_reach::listing::sockets;
use ka_reach::reason::reason;
use ka_reach::worker::Workers;

pub(crate) fn defaults(args: &args::DefaultsArgs) -> CommandResult {
    let values = match &args.set {
        // The values are set after this, so only output errors can make the command fail.
        Some(policy) => set(policy, args.persist.as_deref())?,
        None => sysctl::read()?,
    };
    let report = DefaultsReport::of(values);
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
        if args.set.is_some() {
            writeln!(out, "\n{}", duration_note(args.persist.as_deref()))?;
        }
    }
    out.flush()?;
    Ok(0)
}

/// The directories that systemd-sysctl and sysctl --system read at boot. sysctl.d(5), sysctl(8)
const READ_AT_BOOT: [&str; 5] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"];

/// Describes how long the values stay in force.
fn duration_note(file: Option<&Path>) -> String {
    let Some(path) = file else {
        return "Lost at reboot. Add --persist to keep it: ka then writes the lines above to a file in /etc/sysctl.d."
            .to_owned();
    };
    let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok()).unwrap_or_default();
    let is_there = READ_AT_BOOT.iter().any(|read| fs::canonicalize(read).is_ok_and(|read| read == folder));
    if is_there && path.extension().is_some_and(|extension| extension == "conf") {
        return format!("{} sets them at each boot.", path.display());
    }
    format!(
        "sysctl -p {} sets them. The file is not read at boot: for that, name a .conf file in /etc/sysctl.d.",
        quoted(path.as_os_str())
    )
}

/// The values and their effect, in JSON.
#[derive(Serialize)]
struct DefaultsReport {
    idle: i32,
    intvl: i32,
    cnt: i32,
    /// The detection time of a dead peer, in milliseconds. `None` if a sysctl has a value below 1.
    typical_ms: Option<u64>,
    /// net.ipv4.tcp_retries2
    tcp_retries2: u8,
    /// net.ipv4.tcp_rto_max_ms. `None` before Linux 6.15.
    tcp_rto_max_ms: Option<i32>,
    /// The detection time of a dead peer while data is unacknowledged, in milliseconds.
    data_typical_ms: u64,
    /// The numbers of connections in this network namespace.
    #[serde(flatten)]
    counted: Counted,
}

/// The numbers of connections. `None` if the kernel does not list them.
#[derive(Default, Serialize)]
struct Counted {
    connections: Option<usize>,
    with_keepalive: Option<usize>,
    unknown: Option<usize>,
    #[serde(skip)]
    why_not: String,
}

impl Counted {
    fn count() -> Self {
        let states = [State::Established, State::CloseWait];
        let sockets = match sockets(&mut Workers::default(), &states, None) {
            Ok(listing) => listing.sockets,
            Err(error) => return Self { why_not: error.to_string(), ..Self::default() },
        };
        let count = |keepalive| Some(sockets.iter().filter(|socket| socket.keepalive() == keepalive).count());
        Self {
            connections: Some(sockets.len()),
            with_keepalive: count(Some(true)),
            unknown: count(None),
            why_not: String::new(),
        }
    }

    /// Writes how many connections have keepalive on.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { connections: Some(connections), with_keepalive: Some(on), unknown, why_not: _ } = self
        else {
            return writeln!(
                out,
                "ka cannot count the connections with keepalive, because it cannot list the sockets: {}.",
                self.why_not
            );
        };
        let unknown = match unknown {
            None | Some(0) => String::new(),
            Some(unknown) => format!("; {unknown} could not be checked"),
        };
        let have = if *on == 1 { "has" } else { "have" };
        let connections = count(*connections, "connection");
        writeln!(out, "{on} of {connections} {have} keepalive on{unknown}. ka ls lists them.")
    }
}

impl DefaultsReport {
    fn of([idle, intvl, cnt]: [i32; 3]) -> Self {
        let seconds = |value: i32| u64::try_from(value).ok().filter(|value| *value > 0);
        let typical_ms = seconds(idle)
            .zip(seconds(intvl))
            .zip(seconds(cnt))
            .map(|((idle, intvl), cnt)| 1000 * (idle + intvl * cnt));
        let system = Retransmission::read();
        let data_typical_ms = Config::KEEP.data_time(system).map_or(0, |time| time.typical_ms);
        Self {
            idle,
            intvl,
            cnt,
            typical_ms,
            tcp_retries2: system.retries,
            tcp_rto_max_ms: ka_core::defaults().ok().and_then(|defaults| defaults.rto_max),
            data_typical_ms,
            counted: Counted::count(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(sysctl::lines([self.idle, self.intvl, self.cnt]).as_bytes())?;
        writeln!(out)?;
        match self.typical_ms {
            Some(typical) => writeln!(
                out,
                "A dead peer is detected after {}: {} idle, then {}, {} apart.",
                words(typical),
                seconds(self.idle),
                count(self.cnt, "probe"),
                seconds(self.intvl),
            )?,
            None => writeln!(out, "Keepalive cannot work with these values: each must be 1 or more.")?,
        }
        writeln!(
            out,
            "The values apply only to sockets that have keepalive on and no timers of their own. They do not turn \
             keepalive on."
        )?;
        let rto_max =
            self.tcp_rto_max_ms.map_or_else(String::new, |time| format!(", tcp_rto_max_ms = {time}"));
        writeln!(
            out,
            "While sent data is unacknowledged, no probe is sent. The kernel then detects a dead peer after {} \
             (tcp_retries2 = {}{rto_max}).",
            words(self.data_typical_ms.next_multiple_of(1000)),
            self.tcp_retries2,
        )?;
        self.counted.write(out)
    }
}

fn seconds(seconds: i32) -> String {
    words(1000 * u64::from(seconds.unsigned_abs()))
}

/// Sets the values that the policy names, and writes the file. On failure, nothing is changed. Returns the values that
/// are now in force.
fn set(policy: &Config, persist: Option<&Path>) -> Result<[i32; 3], Failure> {
    let wrong = |message: &str| Failure::new(format_args!("defaults: --set {policy}: {message}"));
    if policy.enabled() != Some(true) {
        return Err(wrong("no sysctl turns keepalive on or off; name idle, intvl or cnt, such as 60,10,6"));
    }
    if policy.names(Timer::UserTimeout) {
        return Err(wrong("there is no sysctl for the user timeout"));
    }
    if policy.names(Timer::RtoMax) {
        return Err(wrong("only idle, intvl and cnt; for rto_max use sysctl -w net.ipv4.tcp_rto_max_ms=MS"));
    }
    let before = sysctl::read()?;
    let named = [Timer::Idle, Timer::Intvl, Timer::Cnt].map(|timer| policy.timer(timer));
    if named == [None; 3] {
        return Err(wrong("name at least one of idle, intvl and cnt"));
    }
    let mut values = before;
    for (value, named) in values.iter_mut().zip(named) {
        *value = named.unwrap_or(*value);
    }
    // Do everything that can fail, also allocations, before the first change.
    let change = sysctl::SysctlWrites::prepare(before, values)?;
    let draft_text = format!("{HEADING}\n{}", sysctl::lines(values));
    let draft = persist
        .map(|path| check_replaceable(path).and_then(|()| Draft::write(path, &draft_text)))
        .transpose()?;
    change.apply()?;
    if let Some(draft) = draft
        && let Err(error) = draft.publish()
    {
        change.undo();
        return Err(Failure::new(format_args!(
            "defaults: --persist {}: {}; nothing was set",
            draft.path.display(),
            reason(&error)
        )));
    }
    persist.map_or(Ok(()), sync_folder)?;
    Ok(values)
}

/// The first line of the file that --persist writes.
const HEADING: &str = "# Written by ka defaults --persist. sysctl.d(5)";

/// Returns an error unless the file may be replaced: it does not exist, or has only lines that ka writes.
fn check_replaceable(path: &Path) -> Result<(), Failure> {
    let refused = |why: &dyn std::fmt::Display| {
        Failure::new(format_args!(
            "defaults: --persist {}: {why}; nothing was set. Name a file that does not exist yet, such as \
             /etc/sysctl.d/60-ka.conf",
            path.display()
        ))
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(&reason(&error))),
        Ok(found) if found.is_symlink() => return Err(refused(&"it is a symbolic link")),
        Ok(found) if !found.is_file() => return Err(refused(&"it is not a regular file")),
        Ok(_) => {}
    }
    let mut text = Vec::new();
    let read = file::open_regular(path).and_then(|mut file| file.read_to_end(&mut text));
    read.map_err(|error| refused(&reason(&error)))?;
    let text = String::from_utf8_lossy(&text);
    let is_own = |line: &str| {
        let name = line.split('=').next().unwrap_or_default().trim().strip_prefix("net.ipv4.");
        line.is_empty() || line == HEADING || name.is_some_and(|name| sysctl::NAMES.contains(&name))
    };
    match text.lines().zip(1..).find(|(line, _)| !is_own(line.trim())) {
        None => Ok(()),
        Some((line, number)) => {
            let line: String = line.chars().take(80).collect();
            Err(refused(&format_args!("ka did not write line {number}: {}", visible(line.as_bytes()))))
        }
    }
}

/// A complete temporary file that `publish` renames to its final path. Without `publish`, `drop` removes it.
struct Draft {
    draft: PathBuf,
    path: PathBuf,
}

impl Draft {
    fn write(path: &Path, text: &str) -> Result<Self, Failure> {
        let refused = |error: io::Error| {
            Failure::new(format_args!("defaults: --persist {}: {}", path.display(), reason(&error)))
        };
        let name = path.file_name().ok_or_else(|| refused(io::ErrorKind::IsADirectory.into()))?;
        let mut new = std::ffi::OsString::from(".");
        new.push(name);
        new.push(format!(".{}", std::process::id()));
        // sysctl(8) ignores names that do not end in .conf.
        let new = path.with_file_name(new);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new).map_err(refused)?;
        // `create_new` has created the file, so ka may remove it.
        let draft = Self { draft: new, path: path.to_path_buf() };
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(refused)?;
        Ok(draft)
    }

    fn publish(&self) -> io::Result<()> {
        fs::rename(&self.draft, &self.path)
    }
}

/// Flushes the directory of a file, so that the file survives a crash.
fn sync_folder(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
    synced.map_err(|error| {
        Failure::new(format_args!(
            "defaults: --persist {}: the values are set and the file is written, but a crash may lose the file: {}",
            path.display(),
            reason(&error)
        ))
    })
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish`, no file has this name.
        let _ = fs::remove_file(&self.draft);
    }
}
