fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let mut data = [1_u8];
    job.world().scope(|scope| {
        scope.send(0, 1, &data)?;
        data[0] = 2; //~ E0506
        Ok(())
    })
}
