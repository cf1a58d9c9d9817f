//! The wire of one rail: a small learning switch that writes down what it carries.
//!
//! Each guest's NIC is a Unix socket on which QEMU (`-netdev stream`) sends Ethernet frames, each after its length in
//! four bytes, most significant first. A thread per port reads frames, learns the sender's address and passes the frame
//! on. A port's capture has what its guest sent and what it was given: the same two sides that a tap at the NIC would
//! see. Records are written whole and at once, so a capture can be read while it grows.

use crate::Error;
use pcap_file::{
    TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Longer than any frame of a guest; a greater length means that the stream is out of step.
const LONGEST_FRAME: usize = 65_535;
/// A guest that takes no frame for this long is hung, and must not stop the others.
const STUCK: Duration = Duration::from_secs(5);

/// Where a port is found, and where its capture goes.
#[derive(Debug, Clone)]
pub(crate) struct PortFiles {
    pub socket: PathBuf,
    pub capture: PathBuf,
}

/// A running switch. Dropping it ends its threads.
#[derive(Debug)]
pub(crate) struct Switch {
    fabric: Arc<Fabric>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Fabric {
    ports: Vec<Mutex<Port>>,
    /// The port behind which an address was last seen.
    learned: Mutex<HashMap<[u8; 6], usize>>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Port {
    capture: Capture,
    /// `None` until the guest connects, and after it is gone.
    stream: Option<UnixStream>,
}

impl Switch {
    /// Opens the ports' sockets, which guests may connect to from now on.
    pub(crate) fn start(files: &[PortFiles]) -> Result<Self, Error> {
        let mut ports = Vec::new();
        let mut listeners = Vec::new();
        for PortFiles { socket, capture } in files {
            let listener = UnixListener::bind(socket).map_err(Error::file("open the socket", socket))?;
            listener.set_nonblocking(true).map_err(Error::file("open the socket", socket))?;
            listeners.push(listener);
            ports.push(Mutex::new(Port { capture: Capture::create(capture)?, stream: None }));
        }
        let fabric = Arc::new(Fabric { ports, learned: Mutex::default(), stop: AtomicBool::new(false) });
        let threads = listeners
            .into_iter()
            .enumerate()
            .map(|(port, listener)| {
                let fabric = Arc::clone(&fabric);
                thread::spawn(move || fabric.serve(port, &listener))
            })
            .collect();
        Ok(Self { fabric, threads })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.fabric.stop.store(true, Ordering::Relaxed);
        for port in &self.fabric.ports {
            if let Some(stream) = &lock(port).stream {
                // The reader wakes up with the end of the stream. It fails only if the guest is gone already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Fabric {
    /// The life of a port: one guest, until it goes.
    fn serve(&self, port: usize, listener: &UnixListener) {
        let Some(stream) = self.accept(listener) else { return };
        let Ok(writer) = stream.try_clone() else { return };
        // Only the writing side has a time limit: a guest may be silent for as long as it likes.
        if writer.set_write_timeout(Some(STUCK)).is_err() {
            return;
        }
        lock(&self.ports[port]).stream = Some(writer);
        let mut reader = BufReader::with_capacity(256 * 1024, stream);
        let mut message = Vec::new();
        while read_message(&mut reader, &mut message).is_ok() && !self.stop.load(Ordering::Relaxed) {
            self.forward(port, &message);
        }
        lock(&self.ports[port]).stream = None;
    }

    fn accept(&self, listener: &UnixListener) -> Option<UnixStream> {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => return stream.set_nonblocking(false).ok().map(|()| stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Passes a message (a frame after its length) on to the port of its receiver, or to all others.
    fn forward(&self, from: usize, message: &[u8]) {
        let frame = &message[4..];
        lock(&self.ports[from]).capture.record(frame);
        let (Some(&to), Some(&source)) =
            (frame.first_chunk::<6>(), frame[6.min(frame.len())..].first_chunk::<6>())
        else {
            return;
        };
        let known = {
            let mut learned = lock(&self.learned);
            learned.insert(source, from);
            learned.get(&to).copied()
        };
        match known {
            // The receiver is on the sender's own side.
            Some(port) if port == from => {}
            Some(port) => lock(&self.ports[port]).deliver(message),
            None => {
                for (_, port) in self.ports.iter().enumerate().filter(|(port, _)| *port != from) {
                    lock(port).deliver(message);
                }
            }
        }
    }
}

impl Port {
    fn deliver(&mut self, message: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        self.capture.record(&message[4..]);
        if stream.write_all(message).is_err() {
            // Half a frame may be out: this stream can't be used again. The cluster's watchdog tells why the guest hangs.
            self.stream = None;
        }
    }
}

fn read_message(reader: &mut impl Read, message: &mut Vec<u8>) -> std::io::Result<()> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let frame = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if frame > LONGEST_FRAME {
        return Err(ErrorKind::InvalidData.into());
    }
    message.clear();
    message.extend_from_slice(&length);
    message.resize(4 + frame, 0);
    reader.read_exact(&mut message[4..])
}

/// A pcap file, to which records are added whole.
#[derive(Debug)]
struct Capture {
    file: File,
    buffer: Vec<u8>,
    /// The length of the file's header.
    header: usize,
    broken: bool,
}

impl Capture {
    fn create(path: &Path) -> Result<Self, Error> {
        let mut file = File::create(path).map_err(Error::file("create", path))?;
        let buffer = Vec::new();
        let writer = PcapWriter::with_header(buffer, header())
            .map_err(|error| Error::Capture { path: path.into(), reason: error.to_string() })?;
        let buffer = writer.into_writer();
        file.write_all(&buffer).map_err(Error::file("write", path))?;
        Ok(Self { file, header: buffer.len(), buffer, broken: false })
    }

    /// A full disk ends the capture, not the wire; the reader then finds packets missing, which fails every check.
    fn record(&mut self, frame: &[u8]) {
        if self.broken {
            return;
        }
        // pcap-file's writer doesn't lend its file, so that a record could be left half written. One write is whole.
        self.buffer.clear();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // `LONGEST_FRAME` bounds it.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let written = PcapWriter::with_header(&mut self.buffer, header())
            .and_then(|mut writer| writer.write_packet(&PcapPacket::new(time, length, frame)));
        self.broken = written.is_err() || self.file.write_all(&self.buffer[self.header..]).is_err();
    }
}

fn header() -> PcapHeader {
    PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() }
}

/// A lock whose holder panicked still guards plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcap::PcapReader;

    type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

    struct Wire {
        folder: tempfile::TempDir,
        _switch: Switch,
        guests: Vec<UnixStream>,
    }

    /// A switch with connected guests.
    fn wire(guests: usize) -> Result<Wire> {
        let folder = tempfile::tempdir()?;
        let files: Vec<_> = (0..guests)
            .map(|port| PortFiles {
                socket: folder.path().join(format!("{port}.sock")),
                capture: folder.path().join(format!("{port}.pcap")),
            })
            .collect();
        let switch = Switch::start(&files)?;
        let guests: Vec<_> =
            files.iter().map(|files| UnixStream::connect(&files.socket)).collect::<std::io::Result<_>>()?;
        for guest in &guests {
            guest.set_read_timeout(Some(Duration::from_secs(10)))?;
        }
        while switch.fabric.ports.iter().any(|port| lock(port).stream.is_none()) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Wire { folder, _switch: switch, guests })
    }

    fn frame(to: u8, from: u8, text: &str) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5], text.as_bytes()].concat()
    }

    impl Wire {
        fn send(&mut self, guest: usize, frame: &[u8]) -> Result {
            let length = u32::try_from(frame.len())?.to_be_bytes();
            // In two writes, as a stream may cut anywhere.
            self.guests[guest].write_all(&length)?;
            self.guests[guest].write_all(frame)?;
            Ok(())
        }

        fn receive(&mut self, guest: usize) -> Result<Vec<u8>> {
            let mut message = Vec::new();
            read_message(&mut self.guests[guest], &mut message)?;
            Ok(message.split_off(4))
        }

        fn captured(&self, guest: usize) -> Result<Vec<Vec<u8>>> {
            let file = File::open(self.folder.path().join(format!("{guest}.pcap")))?;
            let mut reader = PcapReader::new(file)?;
            let mut frames = Vec::new();
            while let Some(packet) = reader.next_packet() {
                frames.push(packet?.data.into_owned());
            }
            Ok(frames)
        }
    }

    #[test]
    fn an_unknown_receiver_is_flooded_and_an_answer_is_not() -> Result {
        let mut wire = wire(3)?;
        let question = frame(2, 1, "question");
        wire.send(0, &question)?;
        assert_eq!(wire.receive(1)?, question);
        assert_eq!(wire.receive(2)?, question);
        let answer = frame(1, 2, "answer");
        wire.send(1, &answer)?;
        assert_eq!(wire.receive(0)?, answer);
        // Both are written before they are delivered, so what was received is in the files.
        assert_eq!(wire.captured(0)?, [question.clone(), answer.clone()]);
        assert_eq!(wire.captured(1)?, [question.clone(), answer]);
        assert_eq!(wire.captured(2)?, [question]);
        Ok(())
    }

    #[test]
    fn a_guest_that_is_gone_or_sends_nonsense_leaves_the_others_alone() -> Result {
        let mut wire = wire(3)?;
        wire.guests[1].shutdown(Shutdown::Both)?;
        wire.guests[2].write_all(&u32::MAX.to_be_bytes())?;
        wire.send(0, &[1, 2, 3])?;
        wire.send(0, &frame(9, 1, "anyone?"))?;
        wire.send(0, &frame(1, 1, "to myself"))?;
        while wire.captured(0)?.len() < 3 {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
