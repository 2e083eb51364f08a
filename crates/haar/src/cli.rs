//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{DEFAULT_STATE_DIR, Settings};

/// The compute cloud of AWS, real, on a machine you own
#[derive(Debug, Parser)]
#[command(
    name = "haar",
    version,
    args_override_self = true,
    about,
    long_about = "The compute cloud of AWS, real, on a machine you own: an endpoint that unmodified AWS clients talk to, and virtual machines, networks and disks that do what the API says.",
    after_help = "Examples:
  haar up                               start the daemon in the background
  eval \"$(haar env)\"                    point this shell's AWS clients at it
  haar image build tiny                 make a first machine image
  aws ec2 describe-images
  haar ssh i-0123456789abcdef0          log in to an instance
  haar down                             stop the daemon; instances keep running
  haar doctor                           see whether this machine has what haar needs",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Folder of everything that outlives the daemon: records, keys, images, disks, logs
    #[arg(long, global = true, value_name = "DIR", env = "HAAR_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the daemon in the background and wait until it answers
    #[command(after_help = "Where the daemon runs already, this says so and changes nothing.

Settings that are not given here come from haar.toml in the state folder, or else from
/etc/haar/haar.toml:
  listen = \"127.0.0.1:4566\"
  region = \"eu-central-1\"
  memory-reserve = 2048

Examples:
  haar up
  haar up --region eu-central-1 --listen 127.0.0.1:5000
  haar up --public-pool 192.168.1.192/27      instances get addresses of your LAN
  haar up --compute simulated                 only the API, no machines")]
    Up(Settings),
    /// Stop the daemon; instances keep running unless --all
    #[command(after_help = "Examples:
  haar down            stop the daemon; the next haar up finds the instances running
  haar down --all      also shut down all instances and take their networks away")]
    Down(Down),
    /// Tell whether the daemon runs, and where
    #[command(
        after_help = "Ends with 0 where the daemon runs and answers, 3 where it does not run, 1 where it does not answer.

Examples:
  haar status
  haar status --json | jq -r .endpoint"
    )]
    Status(Output),
    /// Examine this machine: does it have what haar needs?
    #[command(after_help = "Ends with 0 where nothing fails; warnings do not count.

Examples:
  haar doctor
  haar doctor --json | jq -r '.[] | select(.status != \"ok\") | .fix'")]
    Doctor(Output),
    /// Print the environment that AWS clients need, for eval
    #[command(
        after_help = "Where the aws command found is too old to know AWS_ENDPOINT_URL (before 1.29 and 2.13), a
function of its name that passes the endpoint is printed too.

Examples:
  eval \"$(haar env)\"
  haar env --shell fish | source
  eval \"$(haar env --account staging)\"
  haar env --shell powershell | Out-String | Invoke-Expression"
    )]
    Env(Env),
    /// Run the aws command against this endpoint
    #[command(after_help = "Examples:
  haar aws ec2 describe-instances
  haar aws sts get-caller-identity --output text")]
    Aws(Aws),
    /// Log in to an instance, or run a command in it, by SSH
    #[command(
        after_help = "The key is looked for by the key pair's name: NAME.pem in the state folder's keys/, then NAME.pem
and NAME in ~/.ssh. The user is the image's. Where the instance's console shows its host keys, ssh
checks them; where not, it trusts those of the first login.

Examples:
  haar ssh i-0123456789abcdef0
  haar ssh i-0123456789abcdef0 -- uname -a
  haar ssh i-0123456789abcdef0 -i ./mykey.pem -l admin"
    )]
    Ssh(Ssh),
    /// Attach this terminal to the serial console of an instance
    #[command(
        after_help = "Every key goes to the instance, but for Ctrl-], which detaches. What was printed lately is shown again. It goes on
while the daemon is stopped or started anew; one session at a time.

Examples:
  haar console i-0123456789abcdef0
  haar console web-1"
    )]
    Console(Console),
    /// Have systemd start haar with this machine, and shut its instances down with it
    #[command(
        after_help = "Two units are written: haar.service, which can be stopped and started while instances run on, and
haar-guests.service, which ends with the machine alone and then shuts all instances down.

Examples:
  haar service install
  haar service install --region eu-central-1
  haar service uninstall",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    #[command(subcommand)]
    Service(Service),
    /// Shut all instances down because this machine goes down, or have them come back
    #[command(
        after_help = "What the service calls. Instances that ran come back when haar starts the next time; those that were stopped stay so.

Examples:
  haar guests stop
  haar guests start",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    #[command(subcommand)]
    Guests(Guests),
    /// Move a running instance to another daemon, with its memory, disks, addresses and connections
    #[command(
        after_help = "The instance runs on while its disks and memory are copied, stands still for a moment, and goes on at
the other daemon with its private address and, where that can be reached there, its public one. It
then belongs to the other daemon: here it is gone. Whatever fails before, the instance stays.

The other daemon is named by its state folder, if it is on this machine, or by the invitation that
haar receive prints there. It must have the instance's image; image folders can be copied. Private
addresses lead to instances of the same daemon only.

Should the other daemon go away for ever at the very moment when only it knows whether it has the
instance, the instance stands still until --take-back says that it has not.

Examples:
  haar migrate i-0123456789abcdef0 --to /srv/other
  haar migrate i-0123456789abcdef0 --to haar://10.0.0.2:4566/#3f0c…
  haar migrate --list
  haar migrate --take-back mig-0123456789abcdef0"
    )]
    Migrate(Migrate),
    /// Print an invitation for one instance of another daemon
    #[command(
        after_help = "The invitation is good for ten minutes and one instance. The other daemon must reach the address that
this one answers on (haar up --listen).

Examples:
  haar receive
  haar migrate i-0123456789abcdef0 --to \"$(ssh root@other haar receive)\""
    )]
    Receive,
    /// Machine images: list, build, pull, import, export, remove
    #[command(
        after_help = "Examples:
  haar image list
  haar image build tiny
  haar image pull ubuntu-24.04",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    #[command(subcommand)]
    Image(Image),
    /// Put a disk file where ImportImage and ImportSnapshot take it, and print its URL
    #[command(
        after_help = "The file is sent to the daemon, stays as it is, and is the account's alone. It stays until it is removed,
also when it was imported.

Examples:
  haar upload disk.vmdk
  aws ec2 import-snapshot --disk-container Url=\"$(haar upload data.raw)\",Format=RAW
  haar upload machine.ova --account staging --name machine-1.ova
  haar upload --list
  haar upload --remove disk.vmdk"
    )]
    Upload(Upload),
    /// Read the audit trail: who did what, from where, and what came of it
    #[command(
        after_help = "Every request whose caller is known is in it, in CloudTrail's record form, before its answer is sent.
--json prints the records as they are. The daemon need not run.

Examples:
  haar trail --last 20
  haar trail --follow --errors
  haar trail --user alice --since 2h --writes
  haar trail --resource i-0123456789abcdef0 --json | jq .requestParameters"
    )]
    Trail(Trail),
    /// Accounts: list them, make another
    #[command(
        after_help = "Examples:
  haar account create --name staging
  haar account list
  eval \"$(haar env --account staging)\"",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    #[command(subcommand)]
    Account(Account),
    /// Run the daemon in the foreground, with its log on the standard error
    #[command(
        after_help = "For a service manager; haar up starts the same in the background. SIGTERM and SIGINT stop it.
HAAR_LOG sets what is logged (as `debug` or `haar_vm=trace,info`), HAAR_LOG_FORMAT=json how.

Examples:
  haar serve
  HAAR_LOG=debug haar serve --listen 127.0.0.1:5000"
    )]
    Serve(Settings),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  haar completions bash > /etc/bash_completion.d/haar
  haar completions zsh > \"${fpath[1]}/_haar\"
  haar completions fish > ~/.config/fish/completions/haar.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a folder
    #[command(after_help = "Examples:
  haar man /usr/local/share/man/man1")]
    Man {
        /// The folder; it is made where it is missing
        dir: PathBuf,
    },
}

/// How to stop.
#[derive(Debug, Args)]
pub struct Down {
    /// Also stop everything that the daemon runs
    #[arg(long)]
    pub all: bool,
}

/// How to print.
#[derive(Debug, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// For which shell to print.
#[derive(Debug, Args)]
pub struct Env {
    /// The shell whose syntax to use [default: fish if $SHELL is fish, else sh]
    #[arg(long, value_enum, hide_default_value = true)]
    pub shell: Option<EnvShell>,
    /// The account: its 12 digits or its name [default: the first]
    #[arg(long)]
    pub account: Option<String>,
}

/// A family of shells that share the syntax of assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EnvShell {
    /// Bourne's shell and those like it: dash, bash, zsh
    Sh,
    /// The friendly interactive shell
    Fish,
    /// PowerShell
    Powershell,
}

/// What to run with aws.
#[derive(Debug, Args)]
pub struct Aws {
    /// Arguments of aws
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pub arguments: Vec<OsString>,
}

/// What to show of the audit trail.
#[derive(Debug, Args)]
pub struct Trail {
    /// Print the records themselves, one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Go on printing what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only the latest ones
    #[arg(long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// Only this operation, as RunInstances
    #[arg(long, value_name = "OPERATION")]
    pub event: Option<String>,
    /// Only this service, as ec2
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only this user, role or session, by name or ARN
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only what was signed with this access key
    #[arg(long, value_name = "ID")]
    pub access_key: Option<String>,
    /// Only this account
    #[arg(long, value_name = "ACCOUNT")]
    pub account: Option<String>,
    /// Only what names this resource, as i-…
    #[arg(long, value_name = "ID")]
    pub resource: Option<String>,
    /// Only what was refused
    #[arg(long)]
    pub errors: bool,
    /// Only what changes something
    #[arg(long)]
    pub writes: bool,
    /// Only what came since: 30m, 2h, 7d ago, or a time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

/// Whose console to attach to.
#[derive(Debug, Args)]
pub struct Console {
    /// The instance: i-… or the value of its Name tag
    pub instance: String,
}

/// What to do with the service.
#[derive(Debug, Subcommand)]
pub enum Service {
    /// Write the units, and enable them where systemd runs
    #[command(after_help = "The settings are those of haar serve.

Examples:
  haar service install
  haar service install --listen 0.0.0.0:4566")]
    Install(ServiceInstall),
    /// Disable and remove the units; what runs, runs on
    #[command(after_help = "Examples:
  haar service uninstall")]
    Uninstall(ServicePlace),
}

/// What to install.
#[derive(Debug, Args)]
pub struct ServiceInstall {
    /// Where to
    #[command(flatten)]
    pub place: ServicePlace,
    /// With which settings
    #[command(flatten)]
    pub settings: Settings,
}

/// Where units are.
#[derive(Debug, Args)]
pub struct ServicePlace {
    /// Folder of the units
    #[arg(long, value_name = "DIR", default_value = Self::DEFAULT)]
    pub unit_dir: PathBuf,
}

/// What to do with all guests.
#[derive(Debug, Subcommand)]
pub enum Guests {
    /// Shut all instances down, as a machine that goes down does
    #[command(after_help = "Instances are asked by ACPI, and ended when they have not shut down in time.

Examples:
  haar guests stop
  haar guests stop --grace 30")]
    Stop {
        /// Seconds that instances may take
        #[arg(long, default_value_t = Self::GRACE)]
        grace: u64,
    },
    /// Have the instances come back that were shut down so
    #[command(after_help = "Examples:
  haar guests start")]
    Start,
}

impl Guests {
    /// Seconds that instances may take to shut down.
    pub const GRACE: u64 = 90;
}

/// Where to log in.
#[derive(Debug, Args)]
pub struct Ssh {
    /// The instance: i-… or the value of its Name tag
    pub instance: String,
    /// File of the private key
    #[arg(short = 'i', long = "identity", value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// User to log in as [default: the image's]
    #[arg(short, long)]
    pub login: Option<String>,
    /// Command to run there instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub enum Account {
    /// Make an account with a root key of its own
    #[command(
        after_help = "The resources of one account are invisible to every other. The root key is kept in the state folder.

Examples:
  haar account create
  haar account create --name staging --json"
    )]
    Create {
        /// What to call it here
        #[arg(long)]
        name: Option<String>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// List the accounts
    #[command(after_help = "Examples:
  haar account list
  haar account list --json | jq -r '.[].account_id'")]
    List(Output),
}

/// What to move, and where to.
#[derive(Debug, Args)]
pub struct Migrate {
    /// The instance: i-…
    #[arg(required_unless_present_any = ["list", "cancel", "take_back"])]
    pub instance: Option<String>,
    /// The other daemon: its state folder, or an invitation
    #[arg(long, value_name = "WHERE", requires = "instance", required_unless_present_any = ["list", "cancel", "take_back"])]
    pub to: Option<String>,
    /// Have the instance stay if it has not moved after so many seconds [default: 800 for each GiB of memory and disks]
    #[arg(long, value_name = "SECONDS", requires = "instance", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Print what becomes of it as JSON
    #[arg(long)]
    pub json: bool,
    /// List migrations of the last hour and those under way
    #[arg(long, conflicts_with_all = ["instance", "cancel", "take_back"])]
    pub list: bool,
    /// Have an instance stay that is being copied
    #[arg(long, value_name = "MIGRATION", conflicts_with_all = ["instance", "take_back"])]
    pub cancel: Option<String>,
    /// Let an instance run on here that was to be handed over: the other daemon does not have it, and never will. If it has it
    /// after all, the one here is shut down
    #[arg(long, value_name = "MIGRATION", conflicts_with = "instance")]
    pub take_back: Option<String>,
}

/// What to upload.
#[derive(Debug, Args)]
pub struct Upload {
    /// The disk file: RAW, VHD, VHDX, VMDK or OVA
    #[arg(required_unless_present_any = ["list", "remove"])]
    pub file: Option<PathBuf>,
    /// What to call it [default: the file's name]
    #[arg(long, requires = "file")]
    pub name: Option<String>,
    /// The account: its 12 digits or its name [default: the first]
    #[arg(long)]
    pub account: Option<String>,
    /// List the account's uploads
    #[arg(long, conflicts_with_all = ["file", "remove"])]
    pub list: bool,
    /// Remove an upload; imports that have begun go on
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub remove: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// List the images of this machine
    #[command(after_help = "Examples:
  haar image list
  haar image list --json | jq -r '.[].image_id'")]
    List(Output),
    /// Build an image from Debian packages
    #[command(after_help = "Recipes:
  tiny         BusyBox, Dropbear and a kernel: boots in seconds, also without KVM
  debian-12    Debian 12 with systemd, cloud-init and OpenSSH

The packages come from the mirror that this machine's apt uses, and are checked by its keys.

Examples:
  haar image build tiny
  haar image build debian-12 --name base")]
    Build(ImageBuild),
    /// Fetch a distribution's cloud image from its publisher
    #[command(
        after_help = "An interrupted transfer goes on where it was. The image is used only if its checksum is the
published one.

Examples:
  haar image catalogue
  haar image pull debian-12
  haar image pull ubuntu-24.04 --name web-base"
    )]
    Pull(ImagePull),
    /// Take a disk image in qcow2, raw or VMDK format
    #[command(after_help = "Examples:
  haar image import disk.qcow2 --name web-1 --user admin
  haar image import disk.raw --boot uefi")]
    Import(ImageImport),
    /// Write an image's root disk to a file
    #[command(
        after_help = "The image is one of the library or one that an account has made; for the latter the daemon must run.
The file appears whole or not at all.

Examples:
  haar image export ami-0123456789abcdef0 disk.qcow2
  haar image export tiny disk.vmdk --format vmdk"
    )]
    Export(ImageExport),
    /// Remove an image that no instance uses
    #[command(after_help = "Examples:
  haar image remove ami-0123456789abcdef0
  haar image remove tiny")]
    Remove {
        /// The image: ami-… or its name
        image: String,
        /// Do not ask the daemon whether an instance uses it
        #[arg(long)]
        force: bool,
    },
    /// List the images that can be pulled
    #[command(after_help = "The file catalogue.toml in the state folder adds to the list.

Examples:
  haar image catalogue")]
    Catalogue(Output),
}

/// What to build.
#[derive(Debug, Args)]
pub struct ImageBuild {
    /// The recipe
    #[arg(value_parser = ["tiny", "debian-12"])]
    pub recipe: String,
    /// Name of the image [default: the recipe's]
    #[arg(long)]
    pub name: Option<String>,
    /// Folder that keeps downloaded packages
    #[arg(long, value_name = "DIR", default_value = "/var/cache/haar")]
    pub cache: PathBuf,
    /// A sources.list of apt to take the packages from [default: this machine's]
    #[arg(long, value_name = "FILE")]
    pub sources: Option<PathBuf>,
}

/// What to fetch.
#[derive(Debug, Args)]
pub struct ImagePull {
    /// Name of the catalogue entry
    pub entry: String,
    /// Name of the image [default: the entry's]
    #[arg(long)]
    pub name: Option<String>,
}

/// What to import.
#[derive(Debug, Args)]
pub struct ImageImport {
    /// The disk image
    pub file: PathBuf,
    /// Name of the image [default: the file's without its extension]
    #[arg(long)]
    pub name: Option<String>,
    /// What it is, in a sentence
    #[arg(long, default_value = "", hide_default_value = true)]
    pub description: String,
    /// User to log in as by SSH [default: root]
    #[arg(long)]
    pub user: Option<String>,
    /// Firmware that it boots with [default: what its partition table suggests]
    #[arg(long, value_enum)]
    pub boot: Option<Firmware>,
    /// Name of the root device [default: /dev/xvda]
    #[arg(long, value_name = "DEVICE")]
    pub root_device: Option<String>,
}

/// What to export.
#[derive(Debug, Args)]
pub struct ImageExport {
    /// The image: ami-… or its name
    pub image: String,
    /// The file, which must not exist
    pub file: PathBuf,
    /// Its format
    #[arg(long, value_enum, default_value = "qcow2")]
    pub format: ExportFormat,
}

/// The format of an exported disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// QEMU's copy-on-write format
    Qcow2,
    /// The disk, byte for byte
    Raw,
    /// VMware's
    Vmdk,
}

/// A firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// The PC's BIOS
    Bios,
    /// UEFI
    Uefi,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n"), "haar {} has no examples", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
