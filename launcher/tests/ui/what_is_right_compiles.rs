fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let (data, mut room) = ([1_u8], [0_u8]);
    job.world().scope(|scope| {
        let receive = scope.receive(0, 1, &mut room)?;
        scope.send(0, 1, &data)?;
        println!("{}", data[0]); // being sent, it may still be read
        scope.wait(receive)?;
        Ok(())
    })?;
    println!("{}", room[0]);
    let window = job.world().window::<u64>(10)?;
    window.fetch_add(0, 0, 1)?;
    window.close()
}
