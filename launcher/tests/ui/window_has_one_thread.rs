fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let window = job.world().window::<u64>(10)?;
    std::thread::scope(|threads| {
        threads.spawn(|| window.put(0, 0, &[1])); //~ E0277
    });
    window.close()
}
