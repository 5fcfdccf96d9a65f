"""The values that the generated instructions (`instructions.py`) are about."""

NOUNS = """
acorn anchor apple arrow badge bakery balcony banner barrel basket beacon bench blanket bottle branch bridge broom
bucket butter button cabin camera candle canyon carpet castle cavern ceiling cellar chapel cherry chimney circle clock
cloud coffee collar comet copper corner cotton cradle cricket crystal curtain desert diamond dragon drawer eagle
engine falcon feather fence fiddle finger forest fossil fountain fox galaxy garden garlic ginger glacier glove goose
granite hammer harbor harvest hazel helmet honey hammock horizon insect island jacket jasmine jungle kettle kitchen
kitten ladder lagoon lantern leather lemon lentil lettuce library lily lizard lobster locket magnet mantle marble
market meadow melon mirror mitten monkey mountain museum mustard napkin needle nettle nickel oasis ocean olive onion
orange orchard otter oyster paddle palace panther parcel pebble pencil pepper pillow pigeon planet pocket pond potato
prairie puddle pumpkin puppet quartz quilt rabbit raccoon radish raisin ravine ribbon river rocket rooster saddle
sailor salmon sandal scarf seed shadow shovel silver sparrow spider spinach sponge spoon stable staircase stream
sugar summit sunset swallow tablet teapot temple thimble thistle thunder ticket tiger timber tomato torch tower
treasure trumpet tulip tunnel turtle umbrella valley velvet village violin volcano wagon walnut walrus waterfall
weasel whale wheel willow window winter zebra
""".split()

NAMES = """
Ada Agnes Albert Alice Amir Anita Anton Arthur Astrid Bella Bernard Bianca Boris Bruno Carla Carmen Cecil Clara
Conrad Cora Dahlia Daniel Daphne Dennis Diana Dora Edgar Edith Elena Elias Elsa Emil Enid Esther Eugene Eva Fatima
Felix Fiona Flora Frank Frida George Gerda Gilbert Gloria Greta Gustav Hannah Harold Hazel Hector Helga Henry Hilda
Hugo Ibrahim Ida Ines Irene Isaac Ivan Ivy Jacob Jana Jasper Jonas Judith Julia Karim Kira Klaus Lara Laura Leo Lila
Linus Lorenz Louis Lucy Lydia Magnus Marcus Maria Martha Maya Mina Miriam Mona Nadia Nelson Nina Nora Norman Olga
Oliver Oscar Otto Pamela Paula Percy Petra Philip Quentin Rafael Ralph Rita Robert Rosa Rufus Ruth Samuel Sara Selma
Simon Sofia Stella Sven Tamara Theo Thora Tobias Ulla Ursula Vera Victor Viola Walter Wanda Werner Wilma Xenia Yara
Yusuf Zelda
""".split()

CITIES = """
Accra Adelaide Amman Ankara Antwerp Athens Auckland Baku Bangkok Basel Beirut Belgrade Bergen Berlin Bilbao Bogota
Boston Bremen Bristol Brno Cairo Calgary Cardiff Chicago Cologne Cork Dakar Dallas Delhi Denver Dhaka Dresden Dublin
Durban Florence Galway Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Karachi
Kigali Kyoto Lagos Leeds Leipzig Lille Lima Lisbon Lisburn London Lucerne Lusaka Lyon Madrid Malaga Malmo Manila
Marseille Medan Memphis Mexico Milan Minsk Montreal Mumbai Munich Nairobi Nantes Naples Nice Odense Osaka Oslo Oxford
Palermo Paris Perth Porto Prague Quito Riga Rome Rouen Santiago Seoul Seville Sofia Split Sydney Tallinn Tampere
Tokyo Toronto Trieste Tunis Turin Utrecht Valencia Venice Vienna Vilnius Warsaw York Zagreb Zurich
""".split()
