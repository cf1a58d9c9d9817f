fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let mut kept = None;
    job.world().scope(|scope| {
        kept = Some(scope); //~ E0521
        Ok(())
    })
}
