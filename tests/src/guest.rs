//! A small Linux guest that runs the gateway, and a drive with a volatile cache, so that power can be cut.
//!
//! QEMU emulates the processor: no KVM is needed. The guest is Debian's cloud kernel and an initial file system in memory with
//! busybox and the program under test; its only disk is the drive. `tests/install-tools.sh` unpacks the kernel.

mod drive;

pub use drive::{Drive, Flushes};

use crate::process::Process;
use crate::settings;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BOOT_PATIENCE: Duration = Duration::from_mins(2);

/// Kernel and initial file system.
#[derive(Debug)]
pub struct System {
    kernel: PathBuf,
    initrd: PathBuf,
    folder: PathBuf,
}

impl System {
    /// Packs the program under test, stripped, with its libraries, busybox and the drivers.
    pub fn build(folder: &Path) -> Result<Self> {
        let kernel = settings::built_tool("guest/vmlinuz")?;
        let root = folder.join("root");
        for name in ["bin", "proc", "sys", "dev", "data", "tmp", "lib"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        let program = settings::cairn_binary()?;
        Tool::new("strip").arg("-o").arg(root.join("bin/cairn")).arg(&program).run()?;
        let busybox = Path::new("/bin/busybox");
        copy(busybox, &root.join("bin/busybox")).context("run tests/install-tools.sh")?;
        for library in libraries(&program)? {
            copy(&library, &root.join(library.strip_prefix("/")?))?;
        }
        let drivers = kernel.parent().expect("it lies in a folder").join("lib/modules");
        Tool::new("cp").arg("-r").arg(drivers).arg(root.join("lib/modules")).run()?;
        let init = root.join("init");
        std::fs::write(&init, include_str!("guest/init"))?;
        std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))?;
        let initrd = folder.join("initrd");
        let pack = "cd \"$0\" && find . | busybox cpio -o -H newc >\"$1\"";
        Tool::new("sh").args(["-ec", pack]).arg(&root).arg(&initrd).run()?;
        std::fs::remove_dir_all(root)?;
        Ok(Self { kernel, initrd, folder: folder.to_owned() })
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("no folder to copy to")?)?;
    std::fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// The shared libraries of a program, its loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Tool::new("ldd").arg(program).run()?.stdout;
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// A guest that is switched on. Dropping it is a power cut too.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    log: PathBuf,
    nbd_port: u16,
}

impl Machine {
    /// Switches the guest on and waits until its gateway serves.
    pub fn boot(system: &System, drive: &Drive) -> Result<Self> {
        let mut machine = Self::switch_on(system, drive)?;
        let log = machine.log.clone();
        let serves = || std::fs::read_to_string(&log).is_ok_and(|said| said.contains("Serving /data/d"));
        machine.process.wait_until("serving in the guest", BOOT_PATIENCE, serves)?;
        Ok(machine)
    }

    pub fn switch_on(system: &System, drive: &Drive) -> Result<Self> {
        // A port that the system just gave out; if another takes it first, QEMU says so and the boot fails.
        let nbd_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = system.folder.join("console");
        let _ = std::fs::remove_file(&log);
        let process = Process::start(command(system, drive, nbd_port), &log)?;
        Ok(Self { process, log, nbd_port })
    }

    /// Where the guest's port 10809 is found on this host's loopback.
    pub fn nbd_port(&self) -> u16 {
        self.nbd_port
    }

    pub fn cut_power(mut self) -> Result<()> {
        if let Some(status) = self.process.status()? {
            bail!("the guest had ended by itself with {status}\n{}", self.said());
        }
        self.process.kill()
    }

    pub fn said(&self) -> String {
        self.process.said()
    }
}

fn command(system: &System, drive: &Drive, nbd_port: u16) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768"])
        .arg("-kernel")
        .arg(&system.kernel)
        .arg("-initrd")
        .arg(&system.initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-blockdev")
        .arg(format!(
            "driver=raw,node-name=disk,file.driver=nbd,file.server.type=unix,file.server.path={}",
            drive.socket().display()
        ))
        .args(["-device", "virtio-blk-pci,drive=disk,write-cache=on"])
        .arg("-netdev")
        .arg(format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{nbd_port}-10.0.2.15:10809"))
        .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    command
}
