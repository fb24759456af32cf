//! Reads `global/pg_control` of PostgreSQL 15 to 18: who this data is, and where recovery would begin.
//!
//! Rule: nothing is believed whose version or checksum does not fit.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use proto::{Lsn, SystemIdentifier, Timeline};

/// What PostgreSQL's control file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: SystemIdentifier,
    pub control_version: u32,
    pub catalog_version: u32,
    /// PostgreSQL's major version, from the catalog version: 15 to 18.
    pub major: u32,
    pub state: ControlState,
    /// Where the last checkpoint record begins (on a standby: the last restartpoint's).
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    pub checkpoint_timeline: Timeline,
    pub previous_timeline: Timeline,
    /// How far a standby must replay to be consistent; zero on a primary.
    pub min_recovery_point: Lsn,
    /// Zero where `min_recovery_point` is.
    pub min_recovery_timeline: Timeline,
    pub wal_segment_size: u32,
    pub data_checksums: bool,
    pub wal_log_hints: bool,
}

/// `DBState`: how the server stood when it last wrote the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

/// The bytes in use: 296 of version 18. The rest of the 8 kB file is padding.
const USED: usize = 296;

/// A running server may be writing; one write of 8 kB is over long before this many reads.
const ATTEMPTS: usize = 100;

/// One release's control file: its format, its catalog, and where its checksum stands.
struct Layout {
    control_version: u32,
    catalog_version: u32,
    major: u32,
    crc_at: usize,
}

/// Within a major release neither number changes. All other fields stand at the same place in all four.
const LAYOUTS: [Layout; 4] = [
    Layout { control_version: 1300, catalog_version: 202_209_061, major: 15, crc_at: 288 },
    Layout { control_version: 1300, catalog_version: 202_307_071, major: 16, crc_at: 288 },
    Layout { control_version: 1700, catalog_version: 202_406_281, major: 17, crc_at: 288 },
    Layout { control_version: 1800, catalog_version: 202_506_291, major: 18, crc_at: 292 },
];

/// The only WAL block size that distributions build.
const WAL_BLOCK_SIZE: u32 = 8192;

impl ControlFile {
    /// Reads the control file of a data directory, also of a running server.
    pub fn read(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join("global/pg_control");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let bytes = read_start(&path).with_context(|| format!("read {}", path.display()))?;
            match Self::parse(&bytes) {
                Ok(control) => return Ok(control),
                Err(_) if attempt < ATTEMPTS => std::thread::yield_now(),
                Err(error) => return Err(error.context(format!("read {}", path.display()))),
            }
        }
    }

    /// Reads the content of a control file. Never panics, whatever the bytes are.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        if bytes.len() < USED {
            bail!("the control file has {} bytes, at least {USED} are needed", bytes.len());
        }
        let fields = Fields(bytes);
        let (control_version, catalog_version) = (fields.u32(8), fields.u32(12));
        let Some(layout) = LAYOUTS
            .iter()
            .find(|l| l.control_version == control_version && l.catalog_version == catalog_version)
        else {
            bail!(
                "pg_control_version {control_version} with catalog version {catalog_version} is not \
                 of PostgreSQL 15, 16, 17 or 18 (a beta, another major, or another byte order)"
            );
        };
        let (found, computed) =
            (fields.u32(layout.crc_at), crc32c::crc32c(&bytes[..layout.crc_at]));
        if found != computed {
            bail!(
                "the checksum of the control file is {found:08x}, its content has {computed:08x}"
            );
        }
        let wal_segment_size = fields.u32(228);
        let wal_block_size = fields.u32(224);
        if wal_block_size != WAL_BLOCK_SIZE {
            bail!(
                "WAL blocks of {wal_block_size} bytes: PostgreSQL must be built with {WAL_BLOCK_SIZE}"
            );
        }
        if !wal_segment_size.is_power_of_two() || !(1 << 20..=1 << 30).contains(&wal_segment_size) {
            bail!(
                "the WAL segment size {wal_segment_size} is not a power of two from 1 MB to 1 GB"
            );
        }
        Ok(Self {
            system_identifier: SystemIdentifier(fields.u64(0)),
            control_version,
            catalog_version,
            major: layout.major,
            state: ControlState::from_number(fields.u32(16))?,
            checkpoint: Lsn(fields.u64(32)),
            redo: Lsn(fields.u64(40)),
            checkpoint_timeline: Timeline(fields.u32(48)),
            previous_timeline: Timeline(fields.u32(52)),
            min_recovery_point: Lsn(fields.u64(136)),
            min_recovery_timeline: Timeline(fields.u32(144)),
            wal_segment_size,
            data_checksums: fields.u32(252) != 0,
            wal_log_hints: fields.byte(176) != 0,
        })
    }

    /// Returns the timeline on which recovery of this data would begin: a primary that crashed after its promotion
    /// and before its first checkpoint has that checkpoint on the parent.
    pub fn timeline(&self) -> Timeline {
        self.checkpoint_timeline.max(self.min_recovery_timeline)
    }

    /// Returns whether the server ended by itself and nothing is left to recover.
    pub fn is_clean(&self) -> bool {
        matches!(self.state, ControlState::ShutDown | ControlState::ShutDownInRecovery)
    }
}

impl ControlState {
    fn from_number(number: u32) -> anyhow::Result<Self> {
        Ok(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            other => bail!("{other} is not a state of a database cluster"),
        })
    }

    /// Returns the words of `pg_controldata`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        }
    }
}

/// Returns the control file `bytes` of a primary that crashed, changed to say what a standby's says that was shut down
/// having replayed up to `end`. Refuses all other data: a standby that crashed, a copy or rewind that was never replayed,
/// a primary without a checkpoint on its own timeline.
pub fn stopped_at(bytes: &[u8], end: Lsn, timeline: Timeline) -> anyhow::Result<Vec<u8>> {
    let control = ControlFile::parse(bytes)?;
    let fields = Fields(bytes);
    let (backup_start, backup_end, end_required) =
        (fields.u64(152), fields.u64(160), fields.byte(168));
    let crashed_primary = match control.state {
        ControlState::InProduction | ControlState::ShuttingDown | ControlState::InCrashRecovery => {
            control.min_recovery_point == Lsn(0)
        }
        ControlState::StartingUp
        | ControlState::ShutDown
        | ControlState::ShutDownInRecovery
        | ControlState::InArchiveRecovery => false,
    };
    if !crashed_primary || (backup_start, backup_end, end_required) != (0, 0, 0) {
        bail!(
            "the data is {} and to be replayed to {}, not that of a primary that crashed",
            control.state.describe(),
            control.min_recovery_point
        );
    }
    if timeline != control.checkpoint_timeline || end <= control.checkpoint {
        bail!(
            "the WAL ends at {end} of timeline {timeline}, the last checkpoint is at {} of timeline {}",
            control.checkpoint,
            control.checkpoint_timeline
        );
    }
    let layout = LAYOUTS.iter().find(|l| l.major == control.major).expect("it was parsed by one");
    let mut bytes = bytes.to_vec();
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(16, &SHUT_DOWN_IN_RECOVERY.to_le_bytes());
    put(136, &end.0.to_le_bytes());
    put(144, &timeline.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..layout.crc_at]);
    bytes[layout.crc_at..layout.crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// `DB_SHUTDOWNED_IN_RECOVERY`.
const SHUT_DOWN_IN_RECOVERY: u32 = 2;

fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USED);
    File::open(path)?.take(USED as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Little-endian fields of a slice that was checked to be long enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes a control file of one release with a right checksum.
    fn image(layout: &Layout) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &7_574_891_230_112_233_445_u64.to_le_bytes());
        put(8, &layout.control_version.to_le_bytes());
        put(12, &layout.catalog_version.to_le_bytes());
        put(16, &5_u32.to_le_bytes());
        put(32, &0x300_0060_u64.to_le_bytes());
        put(40, &0x300_0028_u64.to_le_bytes());
        put(48, &2_u32.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(136, &0x300_0148_u64.to_le_bytes());
        put(144, &3_u32.to_le_bytes());
        put(176, &[1]);
        put(224, &8192_u32.to_le_bytes());
        put(228, &(16_u32 << 20).to_le_bytes());
        put(252, &1_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..layout.crc_at]);
        bytes[layout.crc_at..layout.crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn every_supported_release_is_read_and_the_newer_timeline_counts() {
        for layout in &LAYOUTS {
            let control = ControlFile::parse(&image(layout)).unwrap();
            assert_eq!(control.major, layout.major);
            assert_eq!(control.state, ControlState::InArchiveRecovery);
            assert_eq!(control.checkpoint, Lsn(0x300_0060));
            assert_eq!(control.timeline(), Timeline(3));
            assert!(control.data_checksums && control.wal_log_hints);
        }
    }

    /// The control file of a primary that crashed.
    fn crashed(layout: &Layout) -> Vec<u8> {
        changed(layout, &[(16, 6), (136, 0), (144, 0), (48, 3)])
    }

    fn changed(layout: &Layout, fields: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = image(layout);
        for (at, value) in fields {
            bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..layout.crc_at]);
        bytes[layout.crc_at..layout.crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_end_of_wal_is_recorded_for_a_primary_that_crashed_and_nothing_else_changes() {
        for layout in &LAYOUTS {
            let before = crashed(layout);
            let after = stopped_at(&before, Lsn(0x500_0000), Timeline(3)).unwrap();
            let control = ControlFile::parse(&after).unwrap();
            assert_eq!(control.state, ControlState::ShutDownInRecovery);
            assert_eq!(control.min_recovery_point, Lsn(0x500_0000));
            assert_eq!(control.min_recovery_timeline, Timeline(3));
            let touched = [16..20, 136..144, 144..148, layout.crc_at..layout.crc_at + 4];
            let same = (0..before.len())
                .filter(|at| !touched.iter().any(|range| range.contains(at)))
                .all(|at| before[at] == after[at]);
            assert!(same && before.len() == after.len());
        }
    }

    #[test]
    fn data_that_is_not_of_a_crashed_primary_is_never_called_stopped() {
        let layout = &LAYOUTS[3];
        let end = Lsn(0x500_0000);
        // Clean, a standby, and a server that has done nothing yet.
        for state in [0, 1, 2, 5] {
            let bytes = changed(layout, &[(16, state), (136, 0), (144, 0), (48, 3)]);
            assert!(stopped_at(&bytes, end, Timeline(3)).is_err(), "state {state}");
        }
        // Promoted, without a checkpoint since; and copies that were never replayed to their end.
        let promoted = changed(layout, &[(16, 6), (48, 3)]);
        assert!(stopped_at(&promoted, end, Timeline(3)).is_err());
        for at in [152, 160, 168] {
            let bytes = changed(layout, &[(16, 6), (136, 0), (144, 0), (48, 3), (at, 1)]);
            assert!(stopped_at(&bytes, end, Timeline(3)).is_err(), "byte {at}");
        }
        assert!(stopped_at(&crashed(layout), end, Timeline(4)).is_err(), "another timeline");
        assert!(stopped_at(&crashed(layout), Lsn(0x300_0060), Timeline(3)).is_err());
        assert!(stopped_at(&[0; 8192], end, Timeline(3)).is_err());
    }

    #[test]
    fn a_changed_bit_anywhere_or_another_version_is_refused() {
        for layout in &LAYOUTS {
            for at in 0..layout.crc_at + 4 {
                let mut bytes = image(layout);
                bytes[at] ^= 0x10;
                assert!(
                    ControlFile::parse(&bytes).is_err(),
                    "PostgreSQL {}, byte {at}",
                    layout.major
                );
            }
        }
        let beta = Layout { catalog_version: 202_605_131, ..LAYOUTS[3] };
        let error = ControlFile::parse(&image(&beta)).unwrap_err().to_string();
        assert!(error.contains("202605131"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            at in 0_usize..300,
            value in any::<u32>(),
        ) {
            let _ = ControlFile::parse(&bytes);
            // Fields of any value behind a right checksum.
            let mut bytes = image(&LAYOUTS[3]);
            if at + 4 <= LAYOUTS[3].crc_at {
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let crc = crc32c::crc32c(&bytes[..LAYOUTS[3].crc_at]);
                bytes[LAYOUTS[3].crc_at..][..4].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = ControlFile::parse(&bytes);
        }
    }
}
