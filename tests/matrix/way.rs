//! The ways in which ka reaches a program's sockets, and the settings that each must cause.

use std::process::Command;

use ka_test::child::succeed;

use crate::kernel::End;

/// The policy of the whole matrix. No program has these numbers by itself.
pub const POLICY: &str = "97,13,7";
const VALUES: [i32; 3] = [97, 13, 7];
/// The folder with ka. Every user can read it.
pub const INSTALLED: &str = "/run/ka";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// Without ka. The other ways are compared with this one.
    None,
    Force,
    Floor,
    Default,
    Seccomp,
    Cgroup,
    Attach,
}

impl Way {
    pub const ALL: [Self; 7] =
        [Self::None, Self::Force, Self::Floor, Self::Default, Self::Seccomp, Self::Cgroup, Self::Attach];

    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Force => "preload force",
            Self::Floor => "preload floor",
            Self::Default => "preload default",
            Self::Seccomp => "seccomp",
            Self::Cgroup => "cgroup",
            Self::Attach => "attach",
        }
    }

    /// Returns a command that runs a shell script in this way. `attach` comes later, and `cgroup` was attached before.
    pub fn command(self, script: &str) -> Command {
        let shell = ["sh", "-eu", "-c", script];
        let preload = |mode: &str| {
            let mut command = Command::new(shell[0]);
            command.env("LD_PRELOAD", format!("{INSTALLED}/libka_preload.so"));
            command.env("KA_POLICY", POLICY).env("KA_MODE", mode).args(&shell[1..]);
            command
        };
        match self {
            Self::Force => preload("force"),
            Self::Floor => preload("floor"),
            Self::Default => preload("default"),
            Self::Seccomp => {
                let mut command = Command::new(format!("{INSTALLED}/ka"));
                command.args(["run", "--via", "seccomp", "-p", POLICY, "--"]).args(shell);
                command
            }
            Self::None | Self::Cgroup | Self::Attach => {
                let mut command = Command::new(shell[0]);
                command.args(&shell[1..]);
                command
            }
        }
    }

    /// Returns what is wrong with a connection's end. `own` are the ends of the same program without ka.
    pub fn lacks(self, end: &End, own: &[End]) -> Option<&'static str> {
        let End { on, values, .. } = *end;
        let fields = || values.into_iter().zip(VALUES).enumerate();
        match self {
            Self::None => None,
            _ if !on => Some("off"),
            Self::Force | Self::Seccomp | Self::Cgroup | Self::Attach => {
                (values != VALUES).then_some("not the policy")
            }
            Self::Floor => {
                fields().any(|(_, (value, policy))| value > policy).then_some("looser than the policy")
            }
            // The program's own settings are the values without ka that differ from the sysctls.
            Self::Default => {
                let is_own =
                    |field: usize, value: i32| own.iter().any(|end| end.on && end.values[field] == value);
                let strange =
                    fields().any(|(field, (value, policy))| value != policy && !is_own(field, value));
                strange.then_some("neither the policy nor the program's own")
            }
        }
    }
}

/// Attaches the policy to this process's cgroup by `ka cgroup attach`.
pub fn attach_cgroup(cgroup: &std::path::Path) {
    let mut ka = Command::new(format!("{INSTALLED}/ka"));
    succeed(ka.args(["cgroup", "attach", "-p", POLICY]).arg(cgroup));
}

/// Runs `ka attach` on all processes of this namespace.
pub fn attach_all() -> String {
    let mut ka = Command::new(format!("{INSTALLED}/ka"));
    let output = ka.args(["attach", "-p", POLICY, "--all"]).output().unwrap();
    if output.status.success() { String::new() } else { String::from_utf8_lossy(&output.stderr).into_owned() }
}
