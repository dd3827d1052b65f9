"""What are the autoencoders and the priors made of?"""
