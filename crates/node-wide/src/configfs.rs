//! `rdma_cm/DEVICE/ports/PORT/default_roce_tos` of configfs. Making the folder DEVICE shows the device there,
//! removing it hides it again; the class stays as it is either way.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use roce_types::{DevicePort, TrafficClass};

use crate::record::{Record, SavedPort};
use crate::{Error, Restored, failed};

pub(crate) struct Configfs {
    folder: PathBuf,
}

impl Configfs {
    pub(crate) fn below(root: &Path) -> Result<Self, Error> {
        let folder = root.join("sys/kernel/config/rdma_cm");
        if folder.is_dir() { Ok(Self { folder }) } else { Err(Error::NoConfigfs(folder)) }
    }

    fn device(&self, port: &DevicePort) -> PathBuf {
        self.folder.join(&port.device)
    }

    fn file(&self, port: &DevicePort) -> PathBuf {
        self.device(port).join("ports").join(port.port.to_string()).join("default_roce_tos")
    }

    /// Is the device shown?
    pub(crate) fn has(&self, port: &DevicePort) -> bool {
        self.device(port).exists()
    }

    /// Shows the device, unless another of its ports had it shown.
    pub(crate) fn create(&self, port: &DevicePort) -> Result<(), Error> {
        let path = self.device(port);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(failed("make", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Hides the device. One that is gone, with its driver, takes its folder along.
    pub(crate) fn remove(&self, port: &DevicePort) -> Result<(), Error> {
        let path = self.device(port);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    pub(crate) fn get(&self, port: &DevicePort) -> Result<TrafficClass, Error> {
        let path = self.file(port);
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let byte = text.trim().parse().map_err(std::io::Error::other);
        byte.map(TrafficClass).map_err(failed("understand", &path))
    }

    pub(crate) fn set(&self, port: &DevicePort, class: TrafficClass) -> Result<(), Error> {
        let path = self.file(port);
        // Never made: the kernel has it, or there is nothing to write to. (A plain file of a test is cut.)
        let file = OpenOptions::new().write(true).truncate(true).open(&path);
        let mut file = file.map_err(failed("write", &path))?;
        // In one write, which is what configfs takes for a value.
        file.write_all(format!("{}\n", class.0).as_bytes()).map_err(failed("write", &path))
    }

    /// Writes the class of before, unless somebody has changed it since. Nothing if there was no change yet, or the
    /// port is gone.
    pub(crate) fn put_back(&self, saved: &SavedPort, record: &Record) -> Result<Option<Restored>, Error> {
        let Some(before) = saved.before.map(TrafficClass) else { return Ok(None) };
        if !self.file(&saved.port).exists() {
            return Ok(None);
        }
        let (now, from) = (self.get(&saved.port)?, record.class());
        if now == before {
            return Ok(None);
        }
        let is_ours = now == from;
        if is_ours {
            self.set(&saved.port, before)?;
        }
        let kept = (!is_ours).then_some(now);
        Ok(Some(Restored { port: saved.port.clone(), from, to: before, kept, step: record.steps() }))
    }
}
