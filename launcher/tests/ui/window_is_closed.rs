fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let window = job.world().window::<u64>(10)?;
    window.close()?;
    window.put(0, 0, &[1]) //~ E0382
}
