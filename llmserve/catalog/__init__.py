"""The models known to a server, loaded or not, and what their files say.

places      what there is: the served model, configured folders, the Hugging Face cache
answers     a question about one model → JSON
worker      the process that reads model files, so that no stream waits for it
reader      the server's end of that process
catalog     names, cached answers, ETags
"""
