//! A member's disk that is slow, and one that fails: every write waits, or is refused.
//!
//! The one rule: both are seen by a write and an fsync of the lab's own, and so is that they are over.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::MemberName;
use store::clock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::network::run;
use super::{Lab, Struck};

/// How long a slow disk takes for whatever it is asked, and how long it then takes whatever waits.
const HANGS: Duration = Duration::from_millis(250);
const GOES: Duration = Duration::from_millis(5);

/// How many writes it has to hold up before it counts as slow.
const HELD_UP: u32 = 3;

/// What shows that a disk takes writes.
const PROBE: &str = "probe";

/// A disk that hangs again and again. Dropping it lets the disk go on.
pub struct Stutter {
    place: PathBuf,
    ending: CancellationToken,
    task: JoinHandle<()>,
}

impl Stutter {
    fn begin(place: PathBuf) -> Self {
        let ending = CancellationToken::new();
        let (on, ended) = (place.clone(), ending.clone());
        // It blocks: a file system that is to hang first writes what it holds.
        let task = tokio::task::spawn_blocking(move || {
            while !ended.is_cancelled() {
                let _ = freeze(&on, "-f");
                pause(HANGS);
                let _ = freeze(&on, "-u");
                pause(GOES);
            }
        });
        Self { place, ending, task }
    }

    /// Lets the disk go on, and proves that nothing holds it any more.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.ending.cancel();
        (&mut self.task).await.context("the disk's stutter panicked")?;
        let held = freeze(&self.place, "-u");
        ensure!(held.is_err(), "{} hung on", self.place.display());
        write_through(&self.place)
    }
}

impl Drop for Stutter {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it is the fault itself, or waits for a process that tells nobody when it starts"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn freeze(place: &Path, way: &str) -> anyhow::Result<()> {
    run(Command::new("fsfreeze").arg(way).arg(place), "")
}

/// Writes to the disk and waits until it says that it has it.
fn write_through(place: &Path) -> anyhow::Result<()> {
    let file = place.join(PROBE);
    let mut probe = File::create(&file).with_context(|| format!("make {}", file.display()))?;
    probe.write_all(b"probe").and_then(|()| probe.sync_all()).context("write to the disk")?;
    fs::remove_file(&file).context("remove the probe")
}

impl Lab {
    /// Has every write to the disk of `member` take a quarter of a second, and proves it by some of its own.
    pub async fn slow_disk(&self, member: &MemberName) -> anyhow::Result<(Struck, Stutter)> {
        let place = self.disk_of(member)?;
        let struck = Struck::now();
        let stutter = Stutter::begin(place.clone());
        prove_slow(place).await?;
        Ok((struck, stutter))
    }

    /// Breaks the disk of `member`, see `fail`.
    pub fn break_disk(&self, member: &MemberName) -> anyhow::Result<Struck> {
        let place = self.disk_of(member)?;
        let struck = Struck::now();
        fail(&place)?;
        Ok(struck)
    }

    /// Checks the disk of `member`, whose processes have ended, see `check`.
    pub fn check_disk(&self, member: &MemberName) -> anyhow::Result<()> {
        check(&self.home.layout.disk(member), &self.disk_of(member)?)
    }
}

/// Demands that the disk holds writes up again and again: some may come through between.
async fn prove_slow(place: PathBuf) -> anyhow::Result<()> {
    let begun = clock::now();
    let writes = move || -> anyhow::Result<()> {
        let mut held_up = 0;
        while held_up < HELD_UP {
            let asked = clock::now();
            write_through(&place)?;
            held_up += u32::from(clock::now().since(asked) > HANGS / 2);
            let late = clock::now().since(begun) > HANGS * 40;
            ensure!(!late, "a slow disk held up {held_up} writes, not {HELD_UP}");
        }
        Ok(())
    };
    tokio::task::spawn_blocking(writes).await?
}

/// Has the kernel find an error on a disk, as a broken device makes it: from then on it takes no write, and what was not yet on
/// it is lost. Proves that nothing can be written.
fn fail(place: &Path) -> anyhow::Result<()> {
    let trigger = device_of(place)?.join("trigger_fs_error");
    fs::write(&trigger, "drill").with_context(|| format!("write {}", trigger.display()))?;
    let written = write_through(place);
    ensure!(written.is_err(), "{} takes writes though it is broken", place.display());
    Ok(())
}

/// Checks a disk that nobody uses, as a host does that starts again; proves that it takes writes.
fn check(image: &Path, place: &Path) -> anyhow::Result<()> {
    unmount(place)?;
    let check = Command::new("e2fsck").args(["-f", "-y"]).arg(image).output();
    let check = check.context("start e2fsck: run `make deps` if it is not installed")?;
    // 1 says that something was put in order.
    let mended = matches!(check.status.code(), Some(0 | 1));
    ensure!(mended, "{}", String::from_utf8_lossy(&check.stdout));
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(place), "")?;
    write_through(place)
}

/// Unmounts a disk that nobody uses. A program that another thread is just starting holds this process's files until it
/// runs, so for that long the disk may be busy.
fn unmount(place: &Path) -> anyhow::Result<()> {
    let begun = clock::now();
    loop {
        match run(Command::new("umount").arg(place), "") {
            Err(_) if clock::now().since(begun) < Duration::from_secs(5) => pause(GOES),
            ended => return ended,
        }
    }
}

/// Where the kernel shows the file system that is mounted at `place`.
fn device_of(place: &Path) -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let device = fields.find_map(|mut f| {
        let device = f.next()?;
        (Path::new(f.next()?) == place).then_some(device)
    });
    let device = Path::new(device.context("it is not mounted")?);
    Ok(Path::new("/sys/fs/ext4").join(device.file_name().context("a device has a name")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::disk;

    /// A small disk, unmounted at the end.
    struct Scene(tempfile::TempDir);

    impl Drop for Scene {
        fn drop(&mut self) {
            disk::unmount_all(self.0.path()).unwrap();
        }
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self(tempfile::tempdir().unwrap());
            fs::create_dir(scene.place()).unwrap();
            disk::make(&scene.image(), &scene.place(), 32).unwrap();
            scene
        }

        fn place(&self) -> PathBuf {
            self.0.path().join("place")
        }

        fn image(&self) -> PathBuf {
            self.0.path().join("image")
        }
    }

    #[test]
    fn a_disk_that_fails_takes_no_write_and_keeps_what_it_has_until_it_is_checked() {
        let scene = Scene::new();
        let file = scene.place().join("file");
        fs::write(&file, "kept").unwrap();
        File::open(&file).unwrap().sync_all().unwrap();
        let mut open = File::create(scene.place().join("open")).unwrap();
        fail(&scene.place()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        let written = open.write_all(b"lost").and_then(|()| open.sync_all());
        assert!(written.is_err(), "a file that was open still takes writes");
        drop(open);
        check(&scene.image(), &scene.place()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }

    #[tokio::test]
    async fn a_disk_that_stutters_makes_each_write_wait_and_goes_on_in_the_end() {
        let scene = Scene::new();
        let stutter = Stutter::begin(scene.place());
        prove_slow(scene.place()).await.unwrap();
        // How fast it is then is the machine's affair; that nothing holds it any more is proven in there.
        stutter.end().await.unwrap();
    }
}
