//! A cgroup of the program's own, to which the kernel's own programs are attached: all that the program starts has the
//! policy, and nothing of ka's is in it or beside it.
//!
//! The programs are attached to the cgroup and not kept by a link, so they last as long as it does. The program is what
//! ka becomes, as with every way. Somebody must remove the cgroup when its last process has ended: a process of ka's that
//! waits for that, in another session, and does nothing else. Where it is ended too, an empty cgroup stays, which the
//! next `ka run --via cgroup` there removes.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ka_policy::{Mode, Policy, Variables, due, give};

use super::environment::{self, Environment, is_off};
use super::{Launch, Reach, Way, no};
use crate::failure::{Failure, OUR_OWN};
use ka_reach::bpf::{self, Programs, host};
use ka_reach::process;
use ka_reach::sys;
use ka_reach::text::{self, reason};

pub(super) struct Cgroup;

/// What the cgroups are called, before the number of the process that is their first.
const NAME: &str = "ka-run-";

impl Way for Cgroup {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    /// It makes something on the machine, and moves the program to where whoever counts its memory may not look for it.
    fn is_automatic(&self) -> bool {
        false
    }

    fn reach(&self, launch: &Launch<'_>) -> Reach {
        const INSTEAD: &str = "ka run, without --via; or ka attach --follow PID, once it runs";
        if let Some((why, instead)) = is_off(launch) {
            return no(why, instead);
        }
        let file = ka_reach::conf::text().unwrap_or_default();
        let environment = Environment::of(launch, &file);
        let variables = environment.variables(&file);
        if variables.mode == Mode::Floor {
            return no(
                "mode floor is for the shim: the kernel's programs know force and default",
                "--mode force",
            );
        }
        if !variables.rules.is_empty() {
            return no("KA_RULES are for the shim: a cgroup has one policy", "KA_RULES= ka run --via cgroup");
        }
        let Some(own) = host::own_cgroup() else { return no(host::NO_CGROUPS, INSTEAD) };
        if !host::is_cgroup_path(&own) {
            return no(format!("{}: this process's own cgroup is not there", own.display()), INSTEAD);
        }
        match bpf::cgroup_obstacle() {
            Some(why) => no(why, INSTEAD),
            None => Reach::Yes(format!(
                "a cgroup below {}, where the kernel sets every TCP socket",
                own.display()
            )),
        }
    }

    fn start(&self, launch: &Launch<'_>) -> Result<Infallible, Failure> {
        let file = ka_reach::conf::text().unwrap_or_default();
        let environment = Environment::of(launch, &file);
        let Variables { config, mode, .. } = environment.variables(&file);
        let policy = Policy::new(config, mode);
        environment.complain(&file);
        environment.complain_of_log(&file, self.name());
        match enter(policy) {
            Ok(cgroup) => {
                if launch.verbose {
                    let mode = mode.name();
                    let _ = writeln!(
                        io::stderr(),
                        "ka: via cgroup: {}, {}, mode {mode}",
                        text::visible(cgroup.as_os_str().as_encoded_bytes()),
                        config
                    );
                }
                sweep(policy);
            }
            Err(why) if launch.best_effort => {
                let why = text::visible_lines(&why);
                let _ = writeln!(io::stderr(), "ka: run: {why}; running it WITHOUT keepalive");
            }
            Err(why) => return Err(Failure::new(format_args!("run: {why}")).with_status(OUR_OWN)),
        }
        Err(environment::execute(launch, &environment))
    }
}

/// Makes a cgroup with the policy, and moves this process into it.
fn enter(policy: Policy<'static>) -> Result<PathBuf, String> {
    let programs = Programs::load(policy)?;
    let own = host::own_cgroup().ok_or(host::NO_CGROUPS)?;
    remove_empty(&own);
    let path = own.join(format!("{NAME}{}", std::process::id()));
    let said = |path: &Path, error: io::Error| format!("{}: {}", path.display(), reason(&error));
    fs::create_dir(&path).map_err(|error| said(&path, error))?;
    let entered = (|| {
        let folder = File::open(&path).map_err(|error| said(&path, error))?;
        programs.attach(folder.as_fd())?;
        remove_later(&path).map_err(|error| {
            format!("a process that removes {} later: {}", path.display(), reason(&error))
        })?;
        let members = path.join("cgroup.procs");
        fs::write(&members, "0").map_err(|error| said(&members, error))
    })();
    if entered.is_err() {
        let _ = fs::remove_dir(&path);
    }
    entered.map(|()| path)
}

/// Removes what a process that was to remove it has left, because it was ended first.
fn remove_empty(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        // A cgroup that still has processes cannot be removed.
        if is_abandoned(&entry.file_name()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns whether `ka run --via cgroup` made the cgroup with this name for a process that has ended. While the process
/// exists, it may be about to enter the cgroup.
pub(crate) fn is_abandoned(name: &OsStr) -> bool {
    let pid = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Starts the process that removes the cgroup when there is nobody in it any more.
fn remove_later(path: &Path) -> io::Result<()> {
    // The other end closes when this process has become the program, or has ended: from then on empty means over.
    let (waits, held) = sys::pipe()?;
    sys::detached(&[waits.as_raw_fd()], || {
        let _ = File::from(waits.try_clone()?).read(&mut [0]);
        let mut events = File::open(path.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|line| line == "populated 0") {
                return fs::remove_dir(path);
            }
            // Of a cgroup that somebody else removes the file does not say so, until it is read.
            sys::await_change(events.as_fd(), Duration::from_secs(5))?;
        }
    })?;
    std::mem::forget(held);
    Ok(())
}

/// Sets the TCP sockets that the program inherits. They belong to the cgroup in which they were made, so the policy of the
/// new cgroup does not apply to them.
fn sweep(policy: Policy<'static>) {
    for (fd, _) in process::sockets("/proc/self/fd").unwrap_or_default() {
        let socket = ka_core::Socket::new(fd);
        let Ok(was_on) = socket.is_enabled() else { continue };
        if let Some(config) = due(socket, &policy.config, policy.mode, was_on) {
            let _ = give(socket, config, false);
        }
    }
}
