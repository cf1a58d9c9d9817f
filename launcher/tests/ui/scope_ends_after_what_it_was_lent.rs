fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    job.world().scope(|scope| {
        let data = [1_u8];
        scope.send(0, 1, &data) //~ E0597
    })
}
